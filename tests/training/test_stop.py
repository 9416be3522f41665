"""A tracker ends a training: the run is whole, says why, and a resume comes to the same bits."""

import json
import os
import signal

import pytest
import torch

import bpfree
from bpfree import Trainer, UserError
from bpfree.api import resume
from bpfree.data import Batches, Preprocess
from bpfree.runs.config import parse
from bpfree.runs.train import train
from tests.helpers import TASK, net_for, same
from tests.runs.test_run import power_cut, weights
from tests.test_cli import shell

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
EPOCH = 20  # steps


class Stop(bpfree.Tracker):
    """Stops after a step or after an epoch."""

    def __init__(self, *, step: int = 0, epoch: int = 0) -> None:
        self.step, self.epoch = step, epoch

    def on_step(self, trainer, batch):
        if trainer.progress.step == self.step:
            trainer.stop(f"{self.step} steps are enough")

    def on_epoch(self, trainer, record):
        if record["epoch"] == self.epoch:
            trainer.stop(f"{self.epoch} epochs are enough")


def config(epochs=4, **stop):
    trackers = [{"name": "tests.training.test_stop:Stop", **stop}, {"name": "weights", "every": 10}]
    return parse({"rule": "mono_forward", "train": {"epochs": epochs}, "trackers": trackers if stop else []})


@pytest.mark.parametrize(("stop", "steps"), [({"epoch": 2}, 2 * EPOCH), ({"step": 2 * EPOCH}, 2 * EPOCH)])
def test_a_training_that_is_stopped_is_a_shorter_training(stop, steps, tmp_path):
    """With a constant learning rate; else the schedule would know of the epochs that do not come."""
    train(config(2), out=tmp_path / "short")
    run = train(config(4, **stop), out=tmp_path / "stopped")
    assert run.progress.step == steps
    assert same(weights(tmp_path / "short"), weights(tmp_path / "stopped"))
    why = f"{next(iter(stop.values()))} {next(iter(stop))}s are enough"
    assert run.result["stopped"] == why
    assert run.result["epochs"] == 2
    last = json.loads((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"kind": "stopped", "step": steps, "why": why}
    assert bpfree.load(tmp_path / "short").result["stopped"] is None
    assert bpfree.load(tmp_path / "stopped", trust=True).progress.why_stopped == why


def test_the_steps_of_a_part_of_an_epoch_are_an_epoch(tmp_path):
    """The weights are those of a loop of as many steps."""
    run = train(config(step=EPOCH + 7), out=tmp_path / "run")
    assert [(r["epoch"], r["step"]) for r in run.metrics] == [(1, EPOCH), (2, EPOCH + 7)]
    assert run.metrics[1]["train"]["loss"] < run.metrics[0]["train"]["loss"]
    assert "accuracy" in run.metrics[1]["validation"]
    assert [r["step"] for r in run.tracked] == [1, 11, 21]
    with power_cut(pytest.MonkeyPatch(), EPOCH + 7, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        train(config(), out=tmp_path / "interrupted")
    assert same(weights(tmp_path / "interrupted"), weights(tmp_path / "run"))
    loaded = bpfree.load(tmp_path / "run", trust=True)
    assert torch.equal(loaded.predict(run.test.x), run.predict(run.test.x))


@pytest.mark.parametrize("at", [EPOCH - 3, EPOCH + 2])
def test_a_run_that_is_killed_before_it_stops_resumes_exactly(at, tmp_path, monkeypatch):
    train(config(step=EPOCH + 7), out=tmp_path / "whole")
    with power_cut(monkeypatch, at), pytest.raises(RuntimeError):
        train(config(step=EPOCH + 7), out=tmp_path / "torn")
    run = resume(tmp_path / "torn", trust=True)
    assert run.result["stopped"] == f"{EPOCH + 7} steps are enough"
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_a_run_that_is_killed_after_it_stopped_trains_no_step_more(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bpfree.runs.train._measure", None)  # as if the process had died here
        with pytest.raises(TypeError):
            train(config(step=EPOCH + 7), out=tmp_path / "run")
    before = weights(tmp_path / "run")
    run = resume(tmp_path / "run", trust=True)
    assert run.result["stopped"] == f"{EPOCH + 7} steps are enough"
    assert run.progress.step == EPOCH + 7
    assert same(before, weights(tmp_path / "run"))


def test_ctrl_c_within_the_step_that_stops(tmp_path):
    class Both(Stop):
        def on_step(self, trainer, batch):
            super().on_step(trainer, batch)
            if trainer.progress.step == self.step:
                os.kill(os.getpid(), signal.SIGINT)

    def fit(**options):
        return bpfree.fit("mlp", "digits", epochs=3, out=tmp_path / "run", **options)

    with pytest.raises(KeyboardInterrupt):
        fit(trackers=[Both(step=EPOCH + 7)])
    run = fit(trackers=[Both(step=EPOCH + 7)], resume=True)
    assert run.progress.step == EPOCH + 7
    assert run.result["stopped"]


def test_early_stopping_says_so_and_the_best_weights_are_the_result():
    run = bpfree.fit(
        "mlp", "digits", "dfa", epochs=40, early_stopping={"patience": 1}, optimizer={"name": "sgd", "lr": 1.0}
    )
    assert run.result["stopped"] == "early stopping: no better epoch for 1 epoch"
    run = bpfree.fit("mlp", "digits", "dfa", epochs=9, early_stopping={"patience": 9}, trackers=[Stop(step=3 * EPOCH)])
    assert run.result["stopped"] == "60 steps are enough"
    assert run.weights == "best"
    assert run.result["test"] == run.evaluate()


def test_the_shell_and_the_report_say_why(tmp_path):
    args = [
        "train",
        "digits/dfa",
        "trackers=[{name: 'tests.training.test_stop:Stop', step: 57}]",
        "--out",
        tmp_path / "run",
    ]
    assert "stopped after 2 epochs: 57 steps are enough\n" in shell(*args).stdout
    report = bpfree.report(tmp_path / "run", trust=True).read_text("utf-8")
    assert "stopped early, after 2 of 40 epochs: 57 steps are enough" in report


def test_the_first_reason_stays_and_no_training_no_stop(digits_data):
    run = bpfree.fit("mlp", "digits", epochs=3, trackers=[Stop(epoch=1), Stop(step=EPOCH)])
    assert run.result["stopped"] == "20 steps are enough"
    with pytest.raises(UserError, match=r"trainer.stop: no training is running. Call it from a tracker"):
        run.trainer.stop("now")


def test_before_the_first_step(digits_data):
    class Never(bpfree.Tracker):
        def on_start(self, trainer):
            trainer.stop("not today")

    trainer = Trainer(net_for("dfa").float(), "dfa", TASK)
    split = digits_data.train.take(torch.arange(320))
    trainer.fit(Batches(split, Preprocess.of(digits_data, split), 32, seed=0), 2, trackers=[Never()])
    assert trainer.progress.step == 0
    run = bpfree.fit("mlp", "digits", epochs=2, early_stopping={"patience": 2}, trackers=[Never()])
    assert run.result["stopped"] == "not today"
    assert run.weights == "last"
