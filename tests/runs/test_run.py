"""Runs on disk: what is in the folder, exact resumes after real kills, loading, damage."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.disk import atomic
from bpfree.rules import RULES
from bpfree.runs import checkpoint, folder
from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from bpfree.training.optim import SCHEDULES
from tests.helpers import own_net, same

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
# Few members; and `auto` goes by the clock, so two separate runs may choose differently and differ in their last bits.
BLACK_BOX = {
    "eggroll": {"population": 4, "evaluator": "lowrank"},
    **{rule: {"population": 4, "evaluator": "loop"} for rule in ("recombine", "es", "snes", "pgpe")},
}
OVERRIDES = {"noprop_dt": ["net.blocks=3", "net.width=16"]}


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


def test_a_run_folder_is_complete(tmp_path, undrawn):
    undrawn.undo()
    done = bpfree.fit("mlp", "digits", "mono_forward", epochs=3, out=tmp_path / "run")
    names = {p.name for p in done.folder.iterdir() if not p.name.startswith("events.")}
    assert names == {".lock", "config.yaml", "metrics.jsonl", "result.json", "last.ckpt", "best.ckpt", "plots"}
    result = json.loads((done.folder / "result.json").read_text())
    assert result == done.result
    expected = {"test", "rule", "net", "dataset", "seed", "epochs", "parameters", "wall_seconds", "cpu_seconds"}
    assert expected | {"peak_memory_bytes", "step_memory_bytes", "versions"} <= result.keys()
    assert result["test"] == done.evaluate()
    assert (result["rule"], result["net"], result["dataset"], result["epochs"]) == ("mono_forward", "mlp", "digits", 3)
    assert result["parameters"] == sum(p.numel() for p in done.net.parameters())
    assert result["rule_parameters"] == 2 * 256 * 10
    # A matrix of n weights takes 2 n operations forward, 2 n for its gradient, and 2 n for the error of its input,
    # which the first layer of a segment does not need. Heads need it.
    assert result["net_flops"] == 4 * (64 * 256 + 256 * 256 + 256 * 10)
    assert result["head_flops"] == 6 * 2 * 256 * 10
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == done.metrics
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "accuracy", "loss/act1", "loss/act2"} <= lines[0]["train"].keys()
    assert (done.folder / "plots" / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert tensorboard_steps(done.folder) == [line["step"] for line in lines]
    best = max(range(3), key=lambda i: lines[i]["validation"]["accuracy"])
    assert checkpoint.read_state(done.folder / "best.ckpt").progress.step == lines[best]["step"]


def test_the_config_of_a_run_runs_again_to_the_same_weights(tmp_path):
    bpfree.fit("mlp", "digits", "dfa", epochs=2, out=tmp_path / "a", augment={"shift": 1}, precision="bfloat16")
    config = parse(yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()))
    train(config, out=tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("rule", [pytest.param("mono_forward", marks=pytest.mark.slow), "noprop_dt"])
def test_kill_9_at_any_moment_and_resume_gives_the_same_bits(rule, tmp_path):
    """A real process is killed twice, mid-training; what it then comes to is what the undisturbed one came to.

    With weights of the rule's own beside the net's; of every rule, below, the power fails within this process.
    """
    args = [f"digits/{rule}", *OVERRIDES.get(rule, []), "train.epochs=12", "data.augment.shift=1", "optimizer.lr=0.003"]
    train(load_config(args[0], args[1:]), out=tmp_path / "whole")
    torn = tmp_path / "torn"
    (torn / ".last.ckpt.abc").mkdir(parents=True)  # as if killed within a save
    (torn / ".own.notes.txt").write_text("the user's")
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
    assert sorted(f.name for f in torn.glob(".*")) == [".lock", ".own.notes.txt"], (
        "nothing but what the killed processes left goes"
    )


def finished_epochs(folder):
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_ctrl_c_leaves_a_run_that_resumes_from_the_very_step(tmp_path):
    args = ["digits/dfa", "train.epochs=10", "data.batch_size=8", "data.augment.shift=1"]
    train(load_config(args[0], args[1:]), out=tmp_path / "whole")
    torn = tmp_path / "torn"
    process = subprocess.Popen(command("train", *args, "--out", torn), stderr=subprocess.PIPE, text=True)
    while finished_epochs(torn) < 2:
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    started, *epochs, last = errors.splitlines()
    assert started == "training mlp by dfa on digits: 10 epochs on cpu"
    assert all(line.startswith("epoch ") for line in epochs)
    assert last.strip() == (f"interrupted. The last good checkpoint is kept; go on with: bpfree train --resume {torn}")
    step = checkpoint.read_state(torn / "last.ckpt").progress.step
    assert step > 0
    last = json.loads((torn / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"kind": "stopped", "step": step, "why": "interrupted"}
    resume(torn)
    assert same(weights(tmp_path / "whole"), weights(torn))
    records = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (tmp_path / "whole", torn)]
    assert records[0]["train"] == records[1]["train"]


@pytest.mark.parametrize("at", [39, 40, 53, 80])
def test_a_resume_from_any_step_is_exact(at, tmp_path, monkeypatch):
    """The same without a race: the interruption comes in an epoch of 40 steps, or at the very end of one."""
    options = {"epochs": 2, "batch_size": 32, "early_stopping": {"patience": 5}, "schedule": "onecycle"}
    bpfree.fit("mlp", "digits", "mono_forward", out=tmp_path / "whole", **options)
    with power_cut(monkeypatch, at, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", "digits", "mono_forward", out=tmp_path / "torn", **options)
    assert checkpoint.read_state(tmp_path / "torn" / "last.ckpt").progress.step == at
    resume(tmp_path / "torn")
    for name in ("last.ckpt", "best.ckpt"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "torn", name))
    records = [
        [(m["epoch"], m["train"], m["validation"]) for m in bpfree.load(tmp_path / f).metrics]
        for f in ("whole", "torn")
    ]
    assert records[0] == records[1]


@contextmanager
def power_cut(monkeypatch, at, by_ctrl_c=False):
    """Training ends after the given step."""
    real = bpfree.Trainer.step

    def step(self, batch):
        scalars = real(self, batch)
        if self.progress.step == at:
            if not by_ctrl_c:
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGINT)
        return scalars

    with monkeypatch.context() as patch:
        patch.setattr(bpfree.Trainer, "step", step)
        yield


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_schedule_and_fused_optimiser_resumes_exactly_on_a_conv_net(schedule, optimizer, tmp_path, monkeypatch):
    """Convolutions lie in memory channel by channel, and so must what their optimiser remembers."""
    spec = {"name": optimizer, "lr": 0.01} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    values = {
        "data": {"name": "digits", "batch_size": 128},
        "net": {"name": "conv", "channels": [6, 5], "hidden": 12},
        "rule": "mono_forward",
        "optimizer": spec,
        "schedule": schedule,
        "train": {"epochs": 3},
    }
    train(parse(values), out=tmp_path / "whole")
    with power_cut(monkeypatch, 17), pytest.raises(RuntimeError):
        train(parse(values), out=tmp_path / "torn")
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(tmp_path, monkeypatch, digits_data):
    run = tmp_path / "run"
    with power_cut(monkeypatch, 25), pytest.raises(RuntimeError):
        bpfree.fit("mlp", "digits", "dfa", epochs=3, out=run)
    before = weights(run)
    again = partial(bpfree.fit, "mlp", "digits", "dfa", out=run, resume=True)
    with pytest.raises(UserError, match=r"begun with train.epochs=3, found 5"):
        again(epochs=5)
    with pytest.raises(UserError, match=r"begun with optimizer.name=adam, found sgd"):
        again(epochs=3, optimizer="sgd")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
    with pytest.raises(UserError, match=r"begun with train.epochs=3, found 4"):
        resume(run)
    (run / "config.yaml").write_text(text)
    assert same(before, weights(run)), "nothing is lost by a refusal"
    again(epochs=3)
    x, y = digits_data.train
    with power_cut(monkeypatch, 25), pytest.raises(RuntimeError):
        bpfree.fit("mlp", (x, y), "dfa", epochs=3, out=tmp_path / "arrays")
    with pytest.raises(UserError, match="begun for 60 steps, and now it would have 39"):
        bpfree.fit("mlp", (x[:960], y[:960]), "dfa", epochs=3, out=tmp_path / "arrays", resume=True)


def test_a_process_killed_before_its_first_checkpoint_leaves_no_dead_end(tmp_path, monkeypatch):
    """Whatever was written, the same command works again."""
    for moment in ("checkpoint.save", "keeper.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(f"bpfree.runs.{moment}", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
            with pytest.raises(RuntimeError):
                bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / moment, resume=True)
        done = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / moment, resume=True)
        assert done.result["epochs"] == 1


def test_a_run_killed_between_two_renames_goes_on(tmp_path, monkeypatch):
    with power_cut(monkeypatch, 25), pytest.raises(RuntimeError):
        bpfree.fit("mlp", "digits", "dfa", epochs=2, out=tmp_path / "torn")
    (tmp_path / "torn" / "last.ckpt").rename(tmp_path / "torn" / ".last.ckpt.old")
    bpfree.fit("mlp", "digits", "dfa", epochs=2, out=tmp_path / "torn", resume=True)
    bpfree.fit("mlp", "digits", "dfa", epochs=2, out=tmp_path / "whole")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_saving_a_run_elsewhere_keeps_its_best_and_what_is_not_over(tmp_path, monkeypatch):
    options = {"epochs": 13, "optimizer": {"name": "sgd", "lr": 0.5}}
    done = bpfree.fit("mlp", "digits", "backprop", out=tmp_path / "run", **options)
    assert done.result["best_epoch"] < 13
    done.save(tmp_path / "copy")
    for name in ("last.ckpt", "best.ckpt"):
        assert same(weights(tmp_path / "run", name), weights(tmp_path / "copy", name))
    with torch.no_grad():
        done.net.fc1.weight.mul_(2)
    saved = bpfree.load(done.save(tmp_path / "changed"))
    assert same(saved.net.state_dict(), done.net.state_dict())
    with power_cut(monkeypatch, 45), pytest.raises(RuntimeError):
        bpfree.fit("mlp", "digits", "backprop", out=tmp_path / "torn", **options)
    bpfree.load(tmp_path / "torn").save(tmp_path / "moved")
    assert not (tmp_path / "moved" / "result.json").exists()
    resume(tmp_path / "moved")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "moved"))


def test_a_net_of_two_and_three_dimensional_convolutions(digits_data):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.deep, self.out = nn.Conv2d(1, 4, 3), nn.Conv3d(1, 2, 3), nn.Linear(2 * 2 * 4 * 4, 10)

        def forward(self, x):
            return self.out(self.deep(self.flat(x).relu().unsqueeze(1)).flatten(1))

    assert bpfree.fit(Both(), digits_data.train, "backprop", epochs=1).metrics


def test_a_fit_with_objects_from_python_resumes_by_the_same_call(tmp_path, digits_data, monkeypatch):
    def fit(out):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
        return bpfree.fit(net, digits_data.train, "dfa", epochs=3, out=tmp_path / out, resume=True)

    fit("whole")
    with power_cut(monkeypatch, 30), pytest.raises(RuntimeError):
        fit("torn")
    assert checkpoint.read_state(tmp_path / "torn" / "last.ckpt").progress.step == 20
    fit("torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_resumes_exactly(rule, tmp_path, monkeypatch):
    """The same as for kill -9, in one process and for every rule: the power fails in the second epoch of three."""
    mlp = {"name": "mlp", "hidden": [24, 16], "activation": "tanh"}
    net = own_net(rule) or mlp
    spec = {"name": rule, **BLACK_BOX.get(rule, {})}
    values = {"data": {"name": "digits", "batch_size": 128}, "net": net, "rule": spec, "train": {"epochs": 3}}
    config = parse({**values, "schedule": "cosine"})
    train(config, out=tmp_path / "whole")
    with power_cut(monkeypatch, 15), pytest.raises(RuntimeError):
        train(config, out=tmp_path / "torn")
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
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "stopped"
    assert "smaller optimizer.lr" in last["why"]
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
    net = own_net(rule) or conv
    done = bpfree.fit(net, "digits", {"name": rule, **BLACK_BOX.get(rule, {})}, epochs=1, out=tmp_path / "run")
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


def forget(path, *keys):
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "last.ckpt" / "weights.safetensors").write_bytes(b"\x00" * 40), "weights.safetensors: damaged"),
        (lambda f: (f / "last.ckpt" / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda f: (f / "last.ckpt" / "state.json").write_text("{"), "state.json: damaged"),
        (lambda f: (f / "last.ckpt" / "state.json").write_text("{}"), "not a checkpoint of format 2"),
        (lambda f: (f / "result.json").write_text("{"), "result.json: damaged"),
        (lambda f: (f / "result.json").write_text("{}"), "result.json: damaged: test is missing"),
        (lambda f: forget(f / "last.ckpt" / "state.json", "given"), "state.json: damaged: given is missing"),
        (lambda f: forget(f / "last.ckpt" / "state.json", "preprocess", "shape"), "preprocessing is damaged"),
        (lambda f: (f / "config.yaml").write_text("net: {name: mlp, hidden: [3]}"), "do not fit"),
        (lambda f: (f / "config.yaml").write_text("!!python/object/apply:os.system [echo]"), "no readable config.yaml"),
        (lambda f: (f / "config.yaml").unlink(), "not a run folder"),
    ],
    ids=range(11),
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
    atomic.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        atomic.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_of_numpy_and_torch_are_plain_in_a_config(tmp_path):
    net = {"name": "mlp", "hidden": [np.int64(8)]}
    optimizer = {"name": "adam", "lr": torch.tensor(0.01)}
    run = bpfree.fit(net, "digits", "dfa", epochs=1, optimizer=optimizer, out=tmp_path / "run")
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["net"]["hidden"] == [8]
    with pytest.raises(UserError, match="net.hidden: found object, allowed: plain values"):
        bpfree.fit({"name": "mlp", "hidden": [object()]}, "digits", "dfa")


def test_seeds_differ(tmp_path):
    a, b, c = (bpfree.fit("mlp", "digits", "dfa", epochs=1, seed=seed) for seed in (0, 0, 1))
    assert same(a.net.state_dict(), b.net.state_dict())
    assert not same(a.net.state_dict(), c.net.state_dict())
    assert folder.read_result(tmp_path) is None
