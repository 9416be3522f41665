"""Searches by several workers, some of which end before their time."""

import json
import os
import signal
import subprocess
import time

import pytest
from optuna.trial import TrialState

from bpfree.lab.tune.plan import make_plan
from bpfree.lab.tune.store import open_study
from bpfree.lab.tune.study import search
from bpfree.lab.tune.worker import ATTEMPTS, Deaths, bury
from tests.lab.tuning import (
    RULES,
    config_file,
    in_database,
    kill_9_within_a_trial,
    retrained,
    states,
    study_file,
    tiny,
    wait_for,
)
from tests.test_cli import refused, shell

pytestmark = pytest.mark.usefixtures("undrawn")


def test_deaths_are_told_by_counts_that_stand_still(tmp_path):
    plan = make_plan(tiny(), ["tune.grace=1"], out=tmp_path)
    with open_study(plan) as study:
        alive, dead = study.ask(), study.ask()
        deaths = Deaths(plan.settings.grace)
        for beat in range(3):
            alive.set_user_attr("beat", beat)
            found = deaths.among(study.get_trials(deepcopy=False))
            time.sleep(0.6)
    assert [trial.number for trial in found] == [dead.number]


def test_a_trial_that_ends_its_workers_again_and_again_is_left_alone(tmp_path):
    plan = make_plan(tiny(), out=tmp_path)
    with open_study(plan) as study:
        for _ in range(ATTEMPTS):
            trial = study.ask()
            trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
            frozen = study.get_trials()[trial.number]
            bury(study, frozen)
            bury(study, frozen)  # another worker finds it too, a moment later
        trials = study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * (ATTEMPTS - 1) + [TrialState.PRUNED]
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 1


def test_a_grid_is_gone_through_once(tmp_path):
    lr = {"search": "choice", "values": [0.001, 0.01]}
    path = config_file(tmp_path, rule=RULES, optimizer={"name": "adam", "lr": lr}, train={"epochs": 1})
    out = tmp_path / "out"
    shown = shell("tune", path, "tune.sampler=grid", "--workers", "2", "--out", out)
    assert shown.exit_code == 0, shown.stderr
    assert "best values for each setting" in shown.stdout
    trials = study_file(out)["trials"]
    assert len(trials) == 6
    assert len({json.dumps(trial["params"]) for trial in trials}) == 6
    assert states(out) == {"complete": 6}
    assert {len(group["values"]) for group in study_file(out)["settings"]} == {1}, "a choice of numbers is no setting"
    assert len({trial["worker"] for trial in trials}) <= 2


def test_of_two_workers_one_is_killed_and_nothing_but_its_trial_is_lost(start, tmp_path):
    """Thirty trials, two real processes, kill -9 in the middle; then a resume, and the best config is trained again."""
    path, out = config_file(tmp_path, rule=RULES), tmp_path / "out"
    args = ["tune.trials=30", "tune.grace=4"]
    workers = [start(path, out, *args) for _ in range(2)]
    wait_for((out / "trials" / "0003" / "result.json").exists)
    study = in_database(out)
    wait_for(lambda: all(any(f":{w.pid}" in t.user_attrs.get("worker", "") for t in study.trials) for w in workers))
    before = {t.number: t for t in study.get_trials(states=(TrialState.COMPLETE,))}
    killed = kill_9_within_a_trial(study, workers[0])
    shown, errors = workers[1].communicate()
    workers[0].communicate()
    assert workers[1].returncode == 0, errors
    assert "30 complete" in shown
    assert states(out) == {"complete": 30, "failed": 1}
    trials = {trial["number"]: trial for trial in study_file(out)["trials"]}
    assert trials[killed.number]["state"] == "failed"
    assert trials[killed.number]["reason"] == "its worker ended without a word"
    (retry,) = [trial for trial in trials.values() if trial["retry_of"] == killed.number]
    assert retry["state"] == "complete"
    assert killed.params.items() <= retry["params"].items(), "as far as they had been chosen"
    assert all(trials[n]["value"] == t.value and trials[n]["params"] == t.params for n, t in before.items())
    assert shell("tune", path, "tune.trials=32", "--out", out).exit_code == 0, "the study goes on by the same command"
    assert states(out) == {"complete": 32, "failed": 1}
    assert retrained(out, tmp_path)["validation"]["accuracy"] == study_file(out)["best"]["value"]


def test_ctrl_c_puts_the_trial_back_and_the_same_command_goes_on(start, tmp_path):
    path, out, put_back = config_file(tmp_path, train={"epochs": 48}), tmp_path / "out", 0
    for workers in ("1", "2"):
        process = start(path, out, "tune.trials=1000", "--workers", workers)
        before = set(out.glob("trials/*"))
        wait_for(lambda seen=before: any(not (t / "result.json").exists() for t in set(out.glob("trials/*")) - seen))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        assert errors.splitlines()[-1] == "interrupted. Finished trials are kept. The same command goes on"
        trials = in_database(out).trials
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        waiting = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        assert {f.user_attrs["reason"] for f in failed} <= {"KeyboardInterrupt"}
        assert all(params in [f.params for f in failed] for params in waiting)
        assert len(waiting) <= int(workers)
        put_back += len(waiting)
    assert put_back, "both times the trials ended as the signal came"
    enough = sum(trial.state == TrialState.COMPLETE for trial in trials) + 2
    assert shell("tune", path, f"tune.trials={enough}", "--out", out).exit_code == 0
    assert states(out)["complete"] == enough


def test_a_grid_that_two_workers_queued_at_once_is_gone_through_once(tmp_path):
    lr = {"search": "choice", "values": [0.001, 0.01]}
    plan = make_plan(
        tiny(optimizer={"name": "adam", "lr": lr}, train={"epochs": 1}), ["tune.sampler=grid"], out=tmp_path
    )
    with open_study(plan) as study:
        for params in plan.grid * 2:
            study.enqueue_trial(params)
    search(plan)
    assert states(tmp_path) == {"complete": 2}


@pytest.mark.slow
def test_a_process_that_loses_a_worker_ends_with_the_others(start, tmp_path):
    path, out = config_file(tmp_path), tmp_path / "out"
    process = start(path, out, "tune.trials=10", "tune.grace=2", "--workers", "2")
    wait_for((out / "trials" / "0002" / "result.json").exists)
    study = in_database(out)
    wait_for(lambda: study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    os.kill(int(study.get_trials(deepcopy=False)[0].user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert states(out)["complete"] == 10


def test_when_every_worker_ends_early_its_last_words_are_told(tmp_path, monkeypatch):
    """Here before they are told what to do."""

    class Ended(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.wait()

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.exit('no such machine')\n")
    line = refused("tune", config_file(tmp_path), "--workers", "2", "--out", tmp_path / "out")
    assert "every worker ended early" in line
