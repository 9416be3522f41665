"""The command line: its output, its errors, and its fixed list of commands and options."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import bpfree
from bpfree.cli import app
from tests.data.test_idx import write_mnist
from tests.helpers import without_pictures

SMALL = ["train.epochs=1"]


def shell(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args):
    """Run a command that must be refused, and return its error line."""
    result = shell(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith(("training ", "trials: "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    with without_pictures():
        out = tmp_path_factory.mktemp("runs") / "run"
        return bpfree.fit("mlp", "digits", "mono_forward", epochs=10, out=out).folder


def test_the_commands_and_options_are_frozen():
    """Settings belong in the config. Whoever adds a command or an option changes this test on purpose."""
    commands = {}
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    for prefix, group in groups:
        for command in group.registered_commands:
            name = command.name or command.callback.__name__
            commands[prefix + name] = list(command.callback.__annotations__)
    assert commands == {
        "train": ["config", "overrides", "out", "data_dir", "resume", "trust", "return"],
        "tune": ["config", "overrides", "out", "storage", "workers", "launcher", "slurm", "data_dir", "return"],
        "eval": ["run", "overrides", "data_dir", "trust", "return"],
        "plots": ["run", "data_dir", "trust", "return"],
        "predict": ["run", "files", "trust", "return"],
        "generate": ["run", "prompt", "tokens", "temperature", "top_k", "seed", "trust", "return"],
        "export": ["run", "overrides", "format_", "out", "trust", "return"],
        "report": ["runs", "out", "data_dir", "trust", "return"],
        "board": ["runs", "port", "return"],
        "serve": [
            *("runs", "host", "port", "allow_host", "max_mb", "max_samples", "max_seconds", "data_dir", "trust"),
            "return",
        ],
        "watch": ["runs", "host", "port", "allow_host", "return"],
        "compare": [
            *("configs", "rules", "seeds", "out", "jobs", "target", "controls", "export", "launcher", "slurm"),
            *("data_dir", "return"),
        ],
        "certify": ["config", "overrides", "out", "data_dir", "as_json", "trust", "return"],
        "ledger": ["run", "all_", "jobs", "data_dir", "return"],
        "list": ["what", "return"],
        "show": ["name", "return"],
        "data list": ["data_dir", "return"],
        "data get": ["name", "options", "data_dir", "return"],
        "data check": ["name", "data_dir", "return"],
    }


def test_version_and_help():
    assert shell("--version").stdout == f"bpfree {bpfree.__version__}\n"
    assert "without end-to-end backpropagation" in shell("--help").stdout


def test_train_then_eval_in_real_processes(tmp_path, monkeypatch, undrawn):
    def bpfree_(*args):
        command = [sys.executable, "-m", "bpfree", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    args = ("train", "digits/dfa", "train.epochs=2", "rule.feedback=orthogonal")
    done = bpfree_(*args)
    monkeypatch.chdir(tmp_path)
    assert shell(*args).stdout.rstrip().endswith("Run: runs/digits-dfa-2"), "a folder of its own for each"
    assert done.stdout.startswith("dfa on digits: test accuracy 0.")
    assert done.stdout.rstrip().endswith("Run: runs/digits-dfa")
    first, *epochs = done.stderr.splitlines()
    assert first == "training mlp by dfa on digits: 2 epochs on cpu"
    number = r"\d+\.\d+"
    line = rf"epoch \d/2  loss {number}  validation accuracy {number} %  {number} s"
    assert [bool(re.fullmatch(line, epoch)) for epoch in epochs] == [True, True], epochs
    result, again = (json.loads(Path(f"runs/digits-dfa{n}", "result.json").read_text()) for n in ("", "-2"))
    assert json.loads(bpfree_("eval", "runs/digits-dfa").stdout) == result["test"] == again["test"]


def test_a_trained_run_may_infer_otherwise(tmp_path, undrawn):
    run = tmp_path / "run"
    shown = shell("train", "digits/noprop_fm", "train.epochs=4", "--out", run).stdout
    controls = {line.split()[1].rstrip(":"): line.split("accuracy ")[1][:6] for line in shown.splitlines()[:-1]}
    assert set(controls) == {"one_step", "stochastic"}
    for option, name in (("rule.inference=stochastic", "stochastic"), ("rule.steps=1", "one_step")):
        metrics = json.loads(shell("eval", run, option).stdout)
        assert f"{metrics['accuracy']:.4f}" == controls[name]
    assert "found 'rule.name=dfa', allowed for a trained run" in refused("eval", run, "rule.name=dfa")
    assert "unknown key 'rule.step'. Did you mean 'rule.steps'?" in refused("eval", run, "rule.step=1")


def test_list():
    for kind, names in {
        "rules": ["dfa", "noprop_dt"],
        "nets": ["denoiser"],
        "datasets": ["fashion_mnist"],
        "trackers": ["bp_cosine"],
    }.items():
        listed = shell("list", kind).stdout
        assert all(name in listed for name in names)
    everything = shell("list").stdout
    assert "digits/dfa" in everything
    assert "Direct feedback alignment" in everything
    assert "list: found 'rulez', allowed: rules, nets, tasks, datasets, trackers, optimizers" in refused(
        "list", "rulez"
    )
    assert shell("list", "dfa").stdout == shell("show", "dfa").stdout


def test_predict_images_and_arrays(run_folder, tmp_path, digits_data):
    x, y = digits_data.test.x[:20], digits_data.test.y[:20]
    np.save(tmp_path / "many.npy", x.numpy())
    np.save(tmp_path / "grey.npy", x[0, 0].numpy())
    Image.fromarray((x[0, 0].float() * 255 / 16).round().byte().numpy()).save(tmp_path / "one.png")
    result = shell("predict", run_folder, tmp_path / "many.npy", tmp_path / "grey.npy", tmp_path / "one.png")
    rows = [line.split("\t") for line in result.stdout.strip().splitlines()]
    assert len(rows) == 22
    assert np.mean([int(row[1]) == int(label) for row, label in zip(rows, y, strict=False)]) > 0.8
    assert rows[0][0].endswith("many.npy[0]")
    assert rows[0][1:] == rows[20][1:]
    assert rows[21][1] == rows[0][1], "an image and the array it was made from are the same digit"
    assert all(0 < float(row[2]) <= 1 for row in rows)


def test_predict_refuses(run_folder, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "large.png")
    assert "found an image of 28x28 pixels, allowed: 8x8" in refused("predict", run_folder, tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    assert "found a file that Pillow cannot read as an image" in refused("predict", run_folder, tmp_path / "text.png")
    np.save(tmp_path / "shape.npy", np.zeros((3, 5, 5)))
    assert "found the shape [3, 5, 5], allowed: [1, 8, 8]" in refused("predict", run_folder, tmp_path / "shape.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "not a .npy array of numbers" in refused("predict", run_folder, tmp_path / "objects.npy")
    assert f"found {tmp_path / 'gone.png'}, which does not" in refused("predict", run_folder, tmp_path / "gone.png")
    np.save(tmp_path / "nan.npy", np.full((1, 8, 8), np.nan))
    assert "NaN or infinite" in refused("predict", run_folder, tmp_path / "nan.npy")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and so on")
    assert "not a .npy array" in refused("predict", run_folder, tmp_path / "zip.npy")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png" in refused("predict", run_folder, tmp_path / "cut.png")


def test_predict_a_bomb(run_folder, tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "found a file that Pillow cannot read as an image (Image size (4096 pixels)" in refused(
        "predict", run_folder, tmp_path / "bomb.png"
    )


def test_predict_16_bit_images_and_no_samples(run_folder, tmp_path, digits_data):
    x = digits_data.test.x[0, 0].float().numpy()
    Image.fromarray((x * 255 / 16).round().astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((x * 65535 / 16).round().astype(np.uint16)).save(tmp_path / "16.png")
    np.save(tmp_path / "none.npy", np.zeros((0, 1, 8, 8)))
    result = shell("predict", run_folder, tmp_path / "8.png", tmp_path / "16.png", tmp_path / "none.npy")
    eight, sixteen = (line.split("\t") for line in result.stdout.strip().splitlines())
    assert eight[1] == sixteen[1]
    assert float(eight[2]) == pytest.approx(float(sixteen[2]), abs=0.02)


@pytest.mark.parametrize(
    ("shape", "wrong"), [((3, 8, 8), (8, 8)), ((64,), ()), ((8, 8), (8,)), ((8, 8), (3, 8)), ((1, 8, 8), (2, 64))]
)
def test_predict_refuses_arrays_of_another_shape(shape, wrong, tmp_path, undrawn):
    x = np.random.default_rng(0).integers(0, 255, (40, *shape), dtype=np.uint8)
    run = bpfree.fit("mlp", (x, np.arange(40) % 2), "dfa", epochs=1, out=tmp_path / "run")
    np.save(tmp_path / "wrong.npy", np.zeros(wrong))
    np.save(tmp_path / "right.npy", x[0])
    assert f"found the shape {list(wrong)}" in refused("predict", run.folder, tmp_path / "wrong.npy")
    assert len(shell("predict", run.folder, tmp_path / "right.npy").stdout.splitlines()) == 1


def test_images_have_no_scale_where_training_had_floats(tmp_path, undrawn):
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    run = bpfree.fit("mlp", (x, np.arange(40) % 2), "dfa", epochs=1, out=tmp_path / "run")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    assert "trained on float32 samples" in refused("predict", run.folder, tmp_path / "image.png")


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"rule: \xff\xfe")
    assert "not a text file in UTF-8" in refused("train", tmp_path / "bad.yaml")


def test_a_rule_beside_the_config_and_a_home_directory(tmp_path, digits_data):
    """By the installed console script: what lies in the current folder is found, and ~ is the home."""
    script = Path(sys.executable).parent / "bpfree"
    if not script.exists():
        pytest.skip("bpfree is not installed as a script")
    (tmp_path / "mine.py").write_text("from bpfree.rules import Backprop\n\nclass Contrast(Backprop):\n    pass\n")
    args = ["train", "digits/backprop", "rule=mine:Contrast", "train.epochs=1", "--data-dir=~/d"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([script, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mine:Contrast on digits")
    assert f"dir: {tmp_path}/d" in (tmp_path / "runs" / "digits-Contrast" / "config.yaml").read_text()


def test_a_closed_stderr_does_not_fail_a_run(tmp_path):
    command = f"'{sys.executable}' -m bpfree train digits/dfa train.epochs=1 --out run 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "CONFIG: found none. Try `bpfree train digits/dfa`"),
        (["digits/dfaa"], "unknown config 'digits/dfaa'. Did you mean 'digits/dfa'?"),
        (["digits/dfa", "rule=dfaa"], "unknown rule 'dfaa'. Did you mean 'dfa'?"),
        (["digits/dfa", "net=cnov"], "unknown net 'cnov'. Did you mean 'conv'?"),
        (["digits/dfa", "data=digit"], "unknown dataset 'digit'. Did you mean 'digits'?"),
        (["digits/dfa", "trian.epochs=3"], "unknown key 'trian'. Did you mean 'train'?"),
        (["digits/dfa", "train.epochs=-3"], "train.epochs: found -3"),
        (["digits/dfa", "train.epochs=2.5"], "train.epochs: found 2.5"),
        (["digits/dfa", "optimizer.lr=fast"], "optimizer.lr: found 'fast', allowed: number"),
        (["digits/dfa", "optimizer.lr=-1"], "Invalid learning rate: -1"),
        (["digits/dfa", "train.device=cuda:7"], "device: found 'cuda:7', which this machine does not have"),
        (["digits/dfa", "train.device=toaster"], "device: found 'toaster'"),
        (["digits/dfa", "rule.taps=[fc9]"], "unknown tap 'fc9'. Did you mean 'fc"),
        (["digits/dfa", "rule=noprop_dt"], "net: found Sequential, but NoProp needs denoising blocks"),
        (["digits/mono_forward", "net.batch_norm=true", "data.batch_size=1"], "Expected more than 1 value per channel"),
        (["digits/dfa", "net.hidden=[-3]"], "net.hidden: found -3, allowed: a number above 0"),
        (["digits/dfa", "net.hidden=[0]"], "net.hidden: found 0"),
        (["digits/dfa", "rule=:x"], "rule.name: ':x' cannot be imported"),
        (["digits/dfa", "rule=.a:X"], "rule.name: '.a:X' cannot be imported"),
        (["digits/dfa", "train.device=privateuseone"], "device: found 'privateuseone'"),
        (["digits/dfa", "optimizer.capturable=true"], "optimizer.capturable: found true, allowed on a GPU only"),
        (
            ["digits/dfa", "train.early_stopping.metric=f1"],
            "early_stopping.metric: found 'f1', allowed: loss, accuracy",
        ),
        (["digits/dfa", "train.early_stopping={}", "data.validation=0"], "needs validation samples"),
        (["digits/recombine", "rule.population=3"], "population: found 3, allowed: an even number"),
        (["--resume", "nowhere"], "nowhere is not a run folder"),
        (
            ["digits/dfa", "--resume", "nowhere"],
            "--resume: found also a CONFIG, KEY=VALUE or --out, allowed: --resume RUN alone",
        ),
    ],
)
def test_train_refuses(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("train", *args)
    assert message in line
    assert not list(tmp_path.iterdir()), "nothing is left of a run that never began"


def test_train_refuses_data_that_are_missing_or_broken(tmp_path, monkeypatch):
    module = sys.modules["bpfree.data.sets.mnist"]
    monkeypatch.setattr(module, "MNIST", module.MNIST._replace(mirrors=("http://127.0.0.1:1/",)))
    out = ["--out", tmp_path / "run"]
    line = refused("train", "mnist/dfa", "--data-dir", tmp_path / "none", *out)
    assert "could not be downloaded" in line
    assert "--data-dir, BPFREE_DATA" in line
    write_mnist(tmp_path / "cut" / "mnist", gzipped=False)
    images = tmp_path / "cut" / "mnist" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    assert "truncated or corrupt" in refused("train", "mnist/dfa", "--data-dir", tmp_path / "cut", *out)
    write_mnist(tmp_path / "range" / "mnist", labels=[10] * 40)
    assert "labels run from 10 to 10" in refused("train", "mnist/dfa", "--data-dir", tmp_path / "range", *out)
    write_mnist(tmp_path / "length" / "mnist", labels=[1] * 30)
    assert "allowed: 40 labels" in refused("train", "mnist/dfa", "--data-dir", tmp_path / "length", *out)
    assert not (tmp_path / "run").exists(), "nothing is left of a run that never began"


def test_folders_that_cannot_be_used(run_folder, tmp_path):
    assert "holds another run" in refused("train", "digits/dfa", *SMALL, "--out", run_folder)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("train", "digits/dfa", *SMALL, "--out", tmp_path / "file" / "x")
    assert "is not a run folder" in refused("eval", tmp_path)
    (tmp_path / "config.yaml").write_text("rule: dfa\n")
    assert "no checkpoint last.ckpt in it" in refused("eval", tmp_path)
    assert "no checkpoint last.ckpt in it" in refused("train", "--resume", tmp_path)
    assert "no checkpoint last.ckpt in it" in refused("predict", tmp_path, tmp_path / "x.png")


def test_a_diverged_run_says_what_to_try_and_what_is_kept(tmp_path):
    args = ["digits/backprop", "optimizer=sgd", "optimizer.lr=1e30", "--out", tmp_path / "run"]
    line = refused("train", *args)
    assert "training diverged" in line
    assert "smaller optimizer.lr" in line
    assert line.endswith(f"The last good checkpoint is kept in {tmp_path / 'run'}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.csv"])
def test_predict_reads_regular_files_only(run_folder, tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert f"{name}: found a named pipe (FIFO), allowed: a regular file" in refused(
        "predict", run_folder, tmp_path / name
    )
    (tmp_path / "folder").mkdir()
    assert "found a folder, allowed: a regular file" in refused("predict", run_folder, tmp_path / "folder")


def test_predict_takes_arrays_of_every_type_and_layout(run_folder, tmp_path, digits_data):
    x = digits_data.test.x[:4].numpy()
    same = {
        "a": x,
        "last": x.transpose(0, 2, 3, 1),
        "big": x.astype(">i8"),
        "wide": x.astype("longdouble"),
        "grey": x[:, 0],
    }
    answers = []
    for name, values in same.items():
        np.save(tmp_path / f"{name}.npy", values)
        answers.append(
            [
                line.split("\t")[1:]
                for line in shell("predict", run_folder, tmp_path / f"{name}.npy").stdout.splitlines()
            ]
        )
    assert len(answers[0]) == 4
    assert answers == [answers[0]] * len(same)


def test_an_old_key_works_and_the_warning_names_the_new_one(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bpfree",
        "train",
        "digits/dfa",
        "data.flip=true",
        *SMALL,
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("warning: data.flip is now data.augment.flip") == 1
    assert "flip: true" in (tmp_path / "run" / "config.yaml").read_text()
