"""Whoever made a run: reading it executes nothing, and writing into it touches nothing else."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn
from typer.testing import CliRunner

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.cli import app
from bpfree.disk import atomic
from bpfree.disk.plain import parse_yaml, read_text
from bpfree.lab.report.records import read_run
from bpfree.runs import checkpoint
from bpfree.runs.config import parse
from bpfree.runs.config_file import apply_override, load_config
from bpfree.runs.train import train
from tests.hostile.guard import EVIL, Guarded, limited
from tests.runs.test_run import power_cut, weights

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
NAMES = {
    "net": ("net", {"name": f"{EVIL}:Net"}),
    "rule": ("rule", {"name": f"{EVIL}:Net"}),
    "trackers": ("trackers", [{"name": f"{EVIL}:Net"}]),
    "task": ("task", {"name": f"{EVIL}:Net"}),
    "optimizer": ("optimizer", {"name": f"{EVIL}:Net"}),
    "schedule": ("schedule", {"name": f"{EVIL}:Net"}),
    "data": ("data", {"name": f"{EVIL}:Net"}),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    run = tmp_path_factory.mktemp("template") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpfree.runs.run.draw", lambda *_: [])
        bpfree.fit({"name": "mlp", "hidden": [8]}, "digits", "dfa", epochs=1, out=run)
    return run


@pytest.fixture
def guarded(tmp_path, template, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path / "run")
    guarded = Guarded(tmp_path)
    guarded.plant(tmp_path / "run")
    return guarded


def shell(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def name_in_config(run, section, value):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("which", NAMES)
def test_a_run_that_names_code_is_refused_by_every_door(which, guarded):
    run = guarded.root / "run"
    name_in_config(run, *NAMES[which])
    for open_it in (partial(bpfree.load, run), partial(resume, run)):
        with pytest.raises(UserError, match=r"--trust|unknown"):
            open_it()
        guarded.check()
    (run / "result.json").unlink()
    np.save("x.npy", np.zeros((1, 8, 8), dtype=np.float32))
    commands = [["eval", run], ["plots", run], ["certify", run], ["predict", run, "x.npy"], ["train", "--resume", run]]
    for command in commands:
        assert shell(*command).exit_code == 2
        guarded.check()
    assert shell("report", run).exit_code == 0, "the report tells what it can"
    guarded.check()


def test_code_is_run_when_the_user_allows_it_or_is_passed_as_an_object(tmp_path, monkeypatch):
    net = {"name": "tests.outside:Linear", "bias": False}
    config = parse({"net": net, "rule": "tests.outside:HalfBackprop", "train": {"epochs": 2}})
    with power_cut(monkeypatch, 30), pytest.raises(RuntimeError):
        train(config, out=tmp_path / "run")
    for refused in (bpfree.load, resume):
        with pytest.raises(UserError, match=r"net.name: found 'tests.outside:Linear' in .*config.yaml.*--trust"):
            refused(tmp_path / "run")
    assert bpfree.load(tmp_path / "run", trust=True).predict(np.zeros((1, 1, 8, 8), dtype=np.uint8)).shape == (1,)
    from tests.outside import HalfBackprop, Linear

    loaded = bpfree.load(tmp_path / "run", net=Linear((1, 8, 8), 10, bias=False), rule=HalfBackprop())
    assert isinstance(loaded.net, nn.Module)
    assert resume(tmp_path / "run", trust=True).result["epochs"] == 2
    train(config, out=tmp_path / "again")  # a config that the user gives is the user's own


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "compare and tune"])
def test_files_of_the_current_folder_do_not_stand_in_for_libraries(tmp_path, fast):
    for library in ("sklearn", "pooch", "safetensors", "tensorboard", "optuna", "tensorflow"):
        (tmp_path / f"{library}.py").write_text(f"open('executed-{library}', 'w').close()")
    (tmp_path / "mine.py").write_text("from tests.outside import Linear")
    (tmp_path / "my.yaml").write_text("net: 'mine:Linear'\nrule: backprop\ntrain: {epochs: 1}")
    config = ["my.yaml", "data.fraction=0.2"]
    script = "import sys; sys.path.append(''); sys.argv[0] = 'bpfree'; from bpfree.cli import main; main()"
    search = ["optimizer={name: adam, lr: {search: log, low: 1e-3, high: 1e-2}}", "tune.trials=2", "--workers", "2"]
    commands = [
        [sys.executable, "-m", "bpfree", "train", *config, "--out", "a"],
        [sys.executable, "-P", "-c", script.replace("sys.path.append(''); ", ""), "train", *config, "--out", "b"],
        [sys.executable, "-m", "bpfree", "compare", *config, "--seeds", "1", "--out", "c"],
        [sys.executable, "-m", "bpfree", "tune", *config, *search, "--out", "d"],
    ]
    for command in commands[:2] if fast else commands[2:]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_with_repository())
        assert done.returncode in (0, 1), done.stderr
        assert not list(tmp_path.glob("executed-*"))
    assert not fast or (tmp_path / "b" / "result.json").exists()


def _with_repository():
    places = [str(Path(bpfree.__file__).parents[1]), str(Path(__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("best.ckpt", "config.yaml", "result.json")]


@pytest.mark.parametrize("name", ["plots", "last.ckpt", "metrics.jsonl", *_SLOW])
def test_links_in_a_run_are_not_followed_for_writing(name, guarded, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(guarded.root)
    run = guarded.root / "run"
    if (run / name).is_dir():
        (run / name).rename(guarded.root / "moved")
    else:
        (run / name).unlink(missing_ok=True)
    is_folder = name in ("plots", "last.ckpt", "best.ckpt")
    (run / name).symlink_to(guarded.outside if is_folder else guarded.outside / "notes.txt")
    for command in (["plots", run], ["train", "--resume", run], ["certify", run]):
        with limited(60):
            assert shell(*command).exit_code in (0, 1, 2)
        guarded.check()
    assert sorted(p.name for p in guarded.outside.iterdir()) == ["notes.txt", "precious.png"]


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "a device, a pipe or a socket"), ("link", "a symbolic link"), ("folder", "a folder")):
        with pytest.raises(UserError, match=f"{name}: is {what}, allowed: a regular file"):
            atomic.write_text(tmp_path / name, "x")
    with pytest.raises(UserError, match="pipe: found a named pipe .*allowed: a regular file"), limited(5):
        read_text(tmp_path / "pipe", 100)
    (tmp_path / "long").write_text("x" * 101)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        read_text(tmp_path / "long", 100)


def test_what_an_optimiser_remembers_must_fit_it(tmp_path, monkeypatch):
    """A fused optimiser would read beyond a state that is too small."""
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    with power_cut(monkeypatch, 25), pytest.raises(RuntimeError):
        bpfree.fit("mlp", "digits", "dfa", epochs=2, out=run)
    file, before = run / "last.ckpt" / "optimizer.safetensors", weights(run)
    whole = {name: t.clone() for name, t in load_file(file).items()}  # which an old safetensors maps from the file
    first = next(name for name in whole if name.endswith("exp_avg"))
    for spoiled, words in (
        ({**whole, first: whole[first][:1].clone()}, "allowed: floating numbers"),
        ({k: v for k, v in whole.items() if k != first}, r"allowed: .*exp_avg"),
        ({**whole, "999.exp_avg": whole[first].clone()}, "state of parameter 999"),
        ({**whole, first: whole[first].int()}, "allowed: floating numbers"),
    ):
        save_file(spoiled, file)
        with pytest.raises(UserError, match=words):
            resume(run)
    save_file(whole, file)
    assert weights(run).keys() == before.keys()
    assert resume(run).result["epochs"] == 2


def test_yaml_is_read_within_bounds(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    cases = {
        bomb: "aliases grow to more than",
        "a: &a [*a]": "line 1: an alias within the value that it stands for",
        "[" * 2000: "more than 50 lists and mappings within each other",
        "a: 1\nb: 2\na: 3": "line 3: key 'a' is there twice",
        "train:\n  epochs: 1\n  epochs: 2\n": "line 3: key 'epochs' is there twice",
        "on: 1": "found on as a key, allowed: text",
        "a: 2020-99-99": "not YAML",
        f"a: {'9' * 6000}": "not YAML",
        "a: !!python/object/apply:os.system [echo]": "not YAML",
        "# " + "x" * 300_000: "larger than",
    }
    for text, words in cases.items():
        (tmp_path / "my.yaml").write_text(text)
        (tmp_path / "config.yaml").write_text(text)
        for read in (partial(load_config, str(tmp_path / "my.yaml")), partial(parse_yaml, text, "x")):
            with limited(5), pytest.raises(UserError, match=words):
                read()
        with limited(5), pytest.raises(UserError, match="not a run folder"):
            bpfree.load(tmp_path)
    with limited(5), pytest.raises(UserError, match="an alias within"):
        apply_override({}, "net.hidden=&a [*a]")
    assert parse_yaml("base: &b {x: 1}\nmore: {<<: *b, y: [2, 3]}", "x")["more"] == {"x": 1, "y": [2, 3]}


def test_a_folder_that_cannot_be_meant_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for out, words in (
        ("", "--out: found ''"),
        (" ", "--out: found ' '"),
        ("/", "out: found /"),
        ("~", "out: found"),
        ("~nouserofthisname/run", "that user does not exist"),
        ("a\0b", "without NUL"),
        ("file", "file is a file"),
        ("x" * 300, "cannot be written"),
    ):
        done = shell("train", "digits/dfa", "train.epochs=1", "--out", out)
        assert done.exit_code == 2, (out, done.output)
        assert words in " ".join(done.stderr.split()), done.stderr
        if out not in ("~", "file") and len(out) < 200:
            with pytest.raises(UserError):
                bpfree.fit("mlp", "digits", epochs=1, out=out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    for value in (
        "data={name: folder, path: ~nouserofthisname}",
        'data={name: folder, path: "a\\0b"}',
        'data.dir="a\\0b"',
    ):
        with pytest.raises(UserError, match=r"data\.(path|dir): found"):
            load_config("digits/dfa", [value])


def test_result_and_state_come_back_as_they_were_written(template):
    loaded = bpfree.load(template)
    assert loaded.result == json.loads((template / "result.json").read_text())
    state = checkpoint.read_state(template / "last.ckpt")
    written = json.loads((template / "last.ckpt" / "state.json").read_text())
    assert state.progress.load().history == written["progress"]["history"]
    assert json.loads(json.dumps(loaded.setup.checkpoint_extra()["preprocess"])) == written["preprocess"]


def test_metrics_that_are_a_device_or_nested_without_end_are_told(tmp_path):
    (tmp_path / "config.yaml").write_text("rule: dfa\n")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"epoch": 1, "step": 2}\n' + "[" * 100_000 + "\n")
    assert [record["epoch"] for record in read_run(tmp_path).history] == [1]
    assert "1 damaged lines" in " ".join(read_run(tmp_path).notes)
    metrics.unlink()
    metrics.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="metrics.jsonl: found a device, allowed: a regular file"):
        read_run(tmp_path)
