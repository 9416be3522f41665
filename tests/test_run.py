"""Runs on disk: what is in the folder, exact resumes after real kills, loading, damage."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import bpfree
from bpfree import UserError, checkpoint, folder
from bpfree.api import resume
from bpfree.config import load_config, parse
from bpfree.rules import RULES
from bpfree.run import train
from tests.helpers import same

OVERRIDES = {
    "noprop_dt": ["net.blocks=3", "net.width=16"],
    "recombine": ["rule.population=4", "data.batch_size=64"],
}


def command(*args):
    return [sys.executable, "-m", "bpfree", *map(str, args)]


def weights(folder, name="last.ckpt"):
    files = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors")
    return {f"{f}:{k}": v for f in files for k, v in load_file(folder / name / f).items()}


def tensorboard_steps(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_a_run_folder_is_complete(tmp_path):
    done = bpfree.fit("mlp", "digits", "mono_forward", epochs=3, out=tmp_path / "run")
    names = {p.name for p in done.folder.iterdir() if not p.name.startswith("events.")}
    assert names == {"config.yaml", "metrics.jsonl", "result.json", "last.ckpt", "best.ckpt", "plots"}
    result = json.loads((done.folder / "result.json").read_text())
    assert result == done.result
    expected = {"test", "rule", "net", "dataset", "seed", "epochs", "parameters", "wall_seconds", "cpu_seconds"}
    assert expected | {"peak_memory_bytes", "step_memory_bytes", "versions"} <= result.keys()
    assert result["test"] == done.evaluate()
    assert (result["rule"], result["net"], result["dataset"], result["epochs"]) == ("mono_forward", "mlp", "digits", 3)
    assert result["parameters"] == sum(p.numel() for p in done.net.parameters())
    assert result["rule_parameters"] == 2 * 256 * 10
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == done.metrics
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "accuracy", "loss/act1", "loss/act2"} <= lines[0]["train"].keys()
    assert (done.folder / "plots" / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert tensorboard_steps(done.folder) == [line["step"] for line in lines]
    best = max(range(3), key=lambda i: lines[i]["validation"]["accuracy"])
    assert checkpoint.read_state(done.folder / "best.ckpt")["progress"]["step"] == lines[best]["step"]


def test_the_config_of_a_run_runs_again_to_the_same_weights(tmp_path):
    bpfree.fit("mlp", "digits", "dfa", epochs=2, out=tmp_path / "a", shift=1, precision="bfloat16")
    config = parse(yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()))
    train(config, out=tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("rule", ["backprop", "dfa", "mono_forward", "noprop_dt", "recombine"])
def test_kill_9_at_any_moment_and_resume_gives_the_same_bits(rule, tmp_path):
    """A real process is killed twice, mid-training; what it then comes to is what the undisturbed one came to."""
    args = [f"digits/{rule}", *OVERRIDES.get(rule, []), "train.epochs=12", "data.shift=1", "optimizer.lr=0.003"]
    train(load_config(args[0], args[1:]), out=tmp_path / "whole")
    torn = tmp_path / "torn"
    (tmp_path / "torn" / ".last.ckpt.abc").mkdir(parents=True)  # as if killed within a save
    for epochs in (1, 4):
        first = command("train", *args, "--out", torn) if epochs == 1 else command("train", "--resume", torn)
        process = subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and finished_epochs(torn) < epochs:
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert not (torn / "result.json").exists(), "it was over before it could be killed; make it longer"
    resume(torn)
    assert same(weights(tmp_path / "whole"), weights(torn))
    assert same(weights(tmp_path / "whole", "best.ckpt"), weights(torn, "best.ckpt"))
    whole, again = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "whole", torn))
    assert (whole["test"], whole["train"]) == (again["test"], again["train"])
    metrics = [json.loads(line) for line in (torn / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == list(range(1, 13))
    assert not list(torn.glob(".*")), "leftovers of the killed processes"


def finished_epochs(folder):
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_ctrl_c_leaves_a_run_that_resumes_from_the_very_step(tmp_path):
    args = ["digits/dfa", "train.epochs=20", "data.batch_size=8", "data.shift=1"]
    train(load_config(args[0], args[1:]), out=tmp_path / "whole")
    torn = tmp_path / "torn"
    process = subprocess.Popen(command("train", *args, "--out", torn), stderr=subprocess.PIPE, text=True)
    while finished_epochs(torn) < 2:
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == (
        f"interrupted. The last good checkpoint is kept; go on with: bpfree train --resume {torn}"
    )
    assert checkpoint.read_state(torn / "last.ckpt")["progress"]["step"] > 0
    resume(torn)
    assert same(weights(tmp_path / "whole"), weights(torn))
    records = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (tmp_path / "whole", torn)]
    assert records[0]["train"] == records[1]["train"]


def test_a_resume_in_the_middle_of_an_epoch_is_exact(tmp_path, monkeypatch):
    """The same without a race: the interruption comes at a chosen step."""
    options = {"epochs": 2, "batch_size": 32, "early_stopping": {"patience": 5}, "schedule": "onecycle"}
    bpfree.fit("mlp", "digits", "mono_forward", out=tmp_path / "whole", **options)
    real = bpfree.Trainer.step

    def step(self, batch):
        scalars = real(self, batch)
        if self.progress.step == 53:
            os.kill(os.getpid(), signal.SIGINT)
        return scalars

    monkeypatch.setattr(bpfree.Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", "digits", "mono_forward", out=tmp_path / "torn", **options)
    assert checkpoint.read_state(tmp_path / "torn" / "last.ckpt")["progress"]["step"] == 53
    monkeypatch.undo()
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_a_fit_with_objects_from_python_resumes_by_the_same_call(tmp_path, digits_data, monkeypatch):
    def fit(out):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
        return bpfree.fit(net, digits_data.train, "dfa", epochs=3, out=tmp_path / out, resume=True)

    fit("whole")
    real = bpfree.Trainer.step

    def step(self, batch):
        if self.progress.step == 30:
            raise RuntimeError("power cut")
        return real(self, batch)

    monkeypatch.setattr(bpfree.Trainer, "step", step)
    with pytest.raises(RuntimeError):
        fit("torn")
    monkeypatch.undo()
    assert checkpoint.read_state(tmp_path / "torn" / "last.ckpt")["progress"]["step"] == 20
    fit("torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_resumes_exactly(rule, tmp_path, monkeypatch):
    """The same as for kill -9, in one process and for every rule: the power fails in the second epoch of three."""
    net = (
        {"name": "denoiser", "blocks": 2, "width": 16} if rule == "noprop_dt" else {"name": "mlp", "activation": "tanh"}
    )
    values = {"data": {"name": "digits", "batch_size": 128}, "net": net, "rule": rule, "train": {"epochs": 3}}
    config = parse({**values, "schedule": "cosine"})
    train(config, out=tmp_path / "whole")
    real = bpfree.Trainer.step

    def step(self, batch):
        if self.progress.step == 15:
            raise RuntimeError("power cut")
        return real(self, batch)

    monkeypatch.setattr(bpfree.Trainer, "step", step)
    with pytest.raises(RuntimeError):
        train(config, out=tmp_path / "torn")
    monkeypatch.undo()
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_a_run_that_is_over_is_not_run_again(tmp_path):
    done = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    before = weights(done.folder)
    assert resume(done.folder).result == done.result
    assert same(before, weights(done.folder))


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path):
    with pytest.raises(bpfree.DivergedError, match="smaller optimizer.lr"):
        bpfree.fit("mlp", "digits", "backprop", epochs=5, optimizer={"name": "sgd", "lr": 1e20}, out=tmp_path / "run")
    kept = weights(tmp_path / "run")
    assert all(bool(v.isfinite().all()) for v in kept.values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_early_stopping_gives_back_the_best_weights(tmp_path):
    options = {"epochs": 60, "optimizer": {"name": "sgd", "lr": 0.5}, "early_stopping": {"patience": 2}}
    with_folder = bpfree.fit("mlp", "digits", "backprop", out=tmp_path / "run", **options)
    in_memory = bpfree.fit("mlp", "digits", "backprop", **options)
    assert with_folder.result["weights"] == "best"
    assert with_folder.result["best_epoch"] < with_folder.result["epochs"] < 60
    assert same(with_folder.net.state_dict(), in_memory.net.state_dict())
    assert same(with_folder.net.state_dict(), load_file(tmp_path / "run" / "best.ckpt" / "weights.safetensors"))


@pytest.mark.parametrize("rule", RULES)
def test_a_loaded_run_predicts_the_same(rule, tmp_path, digits_data):
    conv = {"name": "conv", "activation": "tanh"}
    net = {"name": "denoiser", "blocks": 2, "width": 16} if rule == "noprop_dt" else conv
    done = bpfree.fit(net, "digits", rule, epochs=1, out=tmp_path / "run")
    loaded = bpfree.load(tmp_path / "run")
    x = digits_data.test.x
    assert torch.equal(done.predict_proba(x), loaded.predict_proba(x))
    assert loaded.evaluate((x, digits_data.test.y)) == done.result["test"]
    assert loaded.result == done.result
    assert loaded.metrics == done.metrics


def test_a_net_from_python_is_saved_and_loaded_with_its_class(tmp_path, digits_data):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))

    x, y = digits_data.train
    done = bpfree.fit(make(), (x.numpy(), y.numpy()), RULES["dfa"](feedback="orthogonal"), epochs=2)
    assert done.result["test"] is None
    assert done.result["rule"] == "DFA"
    folder = done.save(tmp_path / "run")
    with pytest.raises(UserError, match=r"its net was an object from Python.*bpfree.load\(folder, net=...\)"):
        bpfree.load(folder)
    with pytest.raises(UserError, match="its net and rule and data came from Python"):
        resume(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["net"] == {"name": "torch.nn.modules.container:Sequential"}
    assert config["data"]["name"] == "arrays"
    loaded = bpfree.load(folder, net=make(), rule=RULES["dfa"]())
    assert torch.equal(loaded.predict(x), done.predict(x))
    assert same(loaded.trainer.rule.state_dict(), done.trainer.rule.state_dict())


def test_a_checkpoint_killed_between_its_two_renames_is_found(tmp_path):
    done = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    x = done.test.x
    (done.folder / "last.ckpt").rename(done.folder / ".last.ckpt.old")
    assert torch.equal(bpfree.load(done.folder).predict(x), done.predict(x))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "last.ckpt" / "weights.safetensors").write_bytes(b"\x00" * 40), "weights.safetensors: damaged"),
        (lambda f: (f / "last.ckpt" / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda f: (f / "last.ckpt" / "state.json").write_text("{"), "state.json: damaged"),
        (lambda f: (f / "last.ckpt" / "state.json").write_text("{}"), "not a checkpoint of format 1"),
        (lambda f: (f / "result.json").write_text("{"), "result.json: damaged"),
        (lambda f: (f / "config.yaml").write_text("net: {name: mlp, hidden: [3]}"), "do not fit"),
        (lambda f: (f / "config.yaml").write_text("!!python/object/apply:os.system [echo]"), "no readable config.yaml"),
        (lambda f: (f / "config.yaml").unlink(), "no run folder"),
    ],
    ids=range(8),
)
def test_damage_is_named(damage, message, tmp_path):
    bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        bpfree.load(tmp_path / "run")


def test_a_folder_that_holds_a_run_or_cannot_be_written_is_refused(tmp_path):
    bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "file" / "run")


def test_no_file_is_ever_half_written(tmp_path):
    path = tmp_path / "file"
    checkpoint.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        checkpoint.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_seeds_differ(tmp_path):
    a, b, c = (bpfree.fit("mlp", "digits", "dfa", epochs=1, seed=seed) for seed in (0, 0, 1))
    assert same(a.net.state_dict(), b.net.state_dict())
    assert not same(a.net.state_dict(), c.net.state_dict())
    assert folder.read_result(tmp_path) is None
