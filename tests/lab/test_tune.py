"""Searches: markers, workers that die, resumes, and a best config that trains again to its value."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial

import optuna
import pytest
import yaml
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

import bpfree
from bpfree.config import load_config
from bpfree.lab.tune.plan import make_plan
from bpfree.lab.tune.space import find_markers, grid, resolve
from bpfree.lab.tune.store import open_study
from bpfree.lab.tune.worker import ATTEMPTS, Deaths, bury
from tests.test_cli import refused, shell

TINY = {
    "data": {"name": "digits", "batch_size": 128},
    "net": {"name": "mlp", "hidden": [16], "activation": "tanh"},
    "rule": "dfa",
    "optimizer": {"name": "adam", "lr": {"search": "log", "low": "1e-4", "high": "1e-1"}},
    "train": {"epochs": 2},
}
RULES = {"search": "choice", "values": ["dfa", "drtp", {"name": "fa", "feedback": "orthogonal"}]}


def tiny(**sections):
    return {**TINY, **sections}


@pytest.fixture
def config_file(tmp_path):
    def write(**sections):
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(tiny(**sections)))
        return path

    return write


def the_study(out):
    return json.loads((out / "study.json").read_text())


def states(out):
    return Counter(trial["state"] for trial in the_study(out)["trials"])


def in_database(out):
    url = f"sqlite:///{out / 'study.db'}"
    return optuna.load_study(study_name=out.name, storage=RDBStorage(url, {"connect_args": {"timeout": 1}}))


def retrained(out, tmp_path):
    """The metrics that the best config trains to by the ordinary command."""
    assert shell("train", out / "best.yaml", "--out", tmp_path / "again").exit_code == 0
    return json.loads((tmp_path / "again" / "result.json").read_text())


# The space


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("{search: log, low: 1, high: 0.1}", "optimizer.lr: found low 1 above high 0.1, allowed: low up to high"),
        ("{search: log, low: 0, high: 1}", "optimizer.lr.low: found 0, allowed: greater than 0"),
        ("{search: log, low: .inf, high: 1}", "optimizer.lr.low: found inf, allowed: a finite number"),
        ("{search: log, lo: 1, high: 1}", "unknown key 'optimizer.lr.lo'. Did you mean 'optimizer.lr.low'?"),
        ("{search: log, high: 1}", "optimizer.lr.low: missing"),
        ("{search: lin, low: 0, high: 1}", "optimizer.lr.search: found 'lin', allowed: log, linear, int, choice"),
        ("{search: [log], low: 0, high: 1}", "optimizer.lr.search: found"),
        ("{search: int, low: 1.5, high: 2}", "optimizer.lr.low: found 1.5, allowed: a valid integer"),
        ("{search: linear, low: 0, high: 1, step: 0}", "optimizer.lr.step: found 0, allowed: greater than 0"),
        ("{search: choice, values: []}", "optimizer.lr: values: found none, allowed: one or more"),
        ("{search: choice, values: [1, 1.0]}", "optimizer.lr: values: found 1 twice"),
        ("{search: choice, values: 3}", "optimizer.lr.values: found 3, allowed: a valid list"),
        ("{search: choice, values: [1, {search: log}]}", "optimizer.lr=log.low: missing"),
    ],
)
def test_a_malformed_marker_is_named(marker, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("tune", "digits/dfa", f"optimizer.lr={marker}")
    assert not list(tmp_path.iterdir()), "nothing is left of a search that never began"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "digits/dfa: leaves nothing open, allowed: one or more markers"),
        (["tune.trails=3"], "unknown key 'tune.trails'. Did you mean 'tune.trials'?"),
        (["tune.trials=0"], "tune.trials: found 0, allowed: greater than or equal to 1"),
        (["tune.sampler=cma"], "tune.sampler: found 'cma', allowed: 'tpe', 'random' or 'grid'"),
        (["tune=3"], "tune: found 3, allowed: trials, metric"),
        (["data.validation=0"], "tune.metric: found 'validation/accuracy', but data.validation is 0"),
        (["tune.metric=f1"], "tune.metric: found 'validation/f1', allowed: validation/accuracy, validation/loss"),
        (["tune.metric=train"], "tune.metric: found 'train', allowed: such as validation/accuracy"),
        (["task=reconstruct", "tune.metric=accuracy"], "found 'validation/accuracy', allowed: validation/loss"),
        (["train.readout=ridge"], "train.readout: found ridge, which replaces the last layer"),
        (["tune.sampler=grid"], "optimizer.lr: found search: log, which has infinitely many values"),
        (["task={search: choice, values: [classify, reconstruct]}"], "tune.metric: missing, and the task is searched"),
        (["rule={search: choice, values: [dfaa]}"], "unknown rule 'dfaa'. Did you mean 'dfa'?"),
        (["rule=drtp", "task=reconstruct"], "drtp"),
        (["tune.storage=nonsense"], "storage: found no URL"),
        (["tune.storage=nothing://x"], "storage: the driver of nothing://x is not installed"),
        (["tune.storage=sqlite:////nowhere/at/all.db"], "unable to open database file"),
    ],
)
def test_tune_refuses(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bpfree.lab.tune.store._TRIES", 1)
    marker = "optimizer.lr={search: log, low: 1e-4, high: 1e-1}"
    assert message in refused("tune", "digits/dfa", *([marker] if overrides else []), *overrides)
    assert not list(tmp_path.rglob("study.json"))


def test_a_config_that_leaves_a_value_open_cannot_be_trained(config_file):
    path = config_file()
    line = refused("train", path)
    assert line == (
        f"error: {path}: optimizer.lr is left open by a search marker, allowed: a value. `bpfree tune` searches for "
        "the best"
    )
    config_file(tune={"trials": 3})
    assert load_config(str(path), ["optimizer.lr=0.1"]).optimizer["lr"] == 0.1, "what tune is told, train ignores"


def test_values_within_a_choice_may_be_left_open_in_turn():
    values = {
        "rule": {
            "search": "choice",
            "values": [
                "dfa",
                {"name": "fa", "feedback": {"search": "choice", "values": ["uniform", "kaiming"]}},
                {"name": "fa", "feedback": "orthogonal", "x": {"search": "int", "low": 1, "high": 5, "step": 2}},
            ],
        },
        "net": {"hidden": [{"search": "linear", "low": 0, "high": 0.35, "step": 0.1}]},
    }
    names = [name for name, _ in find_markers(values)]
    assert names == [
        "rule",
        "rule=fa(feedback=?).feedback",
        "rule=fa(feedback=orthogonal, x=?).x",
        "net.hidden.0",
    ]
    combinations = grid(values)
    assert len(combinations) == (1 + 2 + 3) * 4
    assert len({json.dumps(params) for params in combinations}) == 24
    assert {params["net.hidden.0"] for params in combinations} == {0.0, 0.1, 0.2, 0.3}
    assert resolve(values, lambda name, _: combinations[-1][name]) == {
        "rule": {"name": "fa", "feedback": "orthogonal", "x": 5},
        "net": {"hidden": [0.3]},
    }


# What comes of a search


def test_a_search_and_what_it_leaves(tmp_path):
    out = tmp_path / "out"
    tuned = bpfree.tune(tiny(rule=RULES), ["tune.trials=8"], out=out)
    values = [trial["value"] for trial in tuned.trials]
    assert len(values) == 8
    assert tuned.best["value"] == max(values)
    assert {path.name for path in out.iterdir()} == {
        *("tune.yaml", "study.db", "study.json", "best.yaml", "importance.png", "parallel.png", "trials"),
    }
    found = the_study(out)
    assert (found["metric"], found["direction"], found["best"]) == ("validation/accuracy", "maximize", tuned.best)
    assert found["trials"] == tuned.trials
    for group in tuned.settings:
        own = [t for t in tuned.trials if t["params"]["rule"] == group["setting"]["rule"]]
        assert group["value"] == max(t["value"] for t in own)
        assert group["trials"] == len(own)
        assert group["values"] == {"optimizer.lr": tuned.trials[group["trial"]]["params"]["optimizer.lr"]}
    for trial in tuned.trials:
        result = json.loads((out / "trials" / f"{trial['number']:04}" / "result.json").read_text())
        assert result["validation"]["accuracy"] == trial["value"]
        assert result["test"] is None, "the test split is out of reach of a search"
    again = retrained(out, tmp_path)
    assert again["validation"]["accuracy"] == tuned.best["value"]
    assert again["test"]["accuracy"] > 0
    assert yaml.safe_load((out / "tune.yaml").read_text())["tune"] == {"trials": 8}


def test_the_same_seed_chooses_the_same_and_a_resume_changes_nothing(tmp_path):
    tune = partial(bpfree.tune, tiny(train={"epochs": 1}))
    whole = tune(["tune.trials=12", "tune.seed=3"], out=tmp_path / "whole")
    tune(["tune.trials=4", "tune.seed=3"], out=tmp_path / "torn")
    torn = tune(["tune.trials=12", "tune.seed=3"], out=tmp_path / "torn")
    assert [trial["params"] for trial in torn.trials] == [trial["params"] for trial in whole.trials]
    other = tune(["tune.trials=1", "tune.seed=4"], out=tmp_path / "other")
    assert other.trials[0]["params"] != whole.trials[0]["params"]


def test_a_value_is_the_mean_over_the_seeds_of_its_trial(tmp_path):
    out = tmp_path / "out"
    overrides = ["tune.repeats=3", "tune.trials=2", "tune.metric=train/loss", "train.seed=5"]
    shown = shell("tune", yaml_of(tmp_path, tiny()), *overrides, "--out", out)
    assert shown.exit_code == 0, shown.stderr
    best = the_study(out)["best"]
    assert best["value"] == sum(best["values"]) / 3 == min(t["value"] for t in the_study(out)["trials"])
    assert "the mean of " in shown.stdout
    assert retrained(out, tmp_path)["train"]["loss"] == best["values"][0]
    folder = out / "trials" / f"{best['number']:04}"
    assert {path.name for path in folder.iterdir()} == {"seed-5", "seed-6", "seed-7"}


def yaml_of(tmp_path, values):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_value_is_that_of_the_weights_that_early_stopping_gives_back(tmp_path):
    stopping = {"epochs": 30, "early_stopping": {"patience": 2}}
    lr = {"search": "choice", "values": [0.3, 0.5]}
    out = tmp_path / "out"
    tuned = bpfree.tune(tiny(train=stopping, optimizer={"name": "sgd", "lr": lr}), ["tune.trials=2"], out=out)
    assert retrained(out, tmp_path)["weights"] == "best"
    history = bpfree.load(tmp_path / "again").metrics
    assert tuned.best["value"] == max(record["validation"]["accuracy"] for record in history)


def test_a_grid_is_gone_through_once(tmp_path, config_file):
    lr = {"search": "choice", "values": [0.001, 0.01]}
    path = config_file(rule=RULES, optimizer={"name": "adam", "lr": lr}, train={"epochs": 1})
    out = tmp_path / "out"
    shown = shell("tune", path, "tune.sampler=grid", "--workers", "2", "--out", out)
    assert shown.exit_code == 0, shown.stderr
    assert "best values for each setting" in shown.stdout
    trials = the_study(out)["trials"]
    assert len(trials) == 6
    assert len({json.dumps(trial["params"]) for trial in trials}) == 6
    assert states(out) == {"complete": 6}
    assert {len(group["values"]) for group in the_study(out)["settings"]} == {1}, "a choice of numbers is no setting"
    assert len({trial["worker"] for trial in trials}) <= 2


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median"])
def test_pruners_stop_what_does_badly(pruner, tmp_path):
    lr = {"search": "choice", "values": [1e-6, 2e-2, 3e-2]}
    values = tiny(optimizer={"name": "adam", "lr": lr}, train={"epochs": 9}, data={"name": "digits", "batch_size": 500})
    options = [f"tune.pruner={pruner}", "tune.trials=14", "tune.sampler=random"]
    tuned = bpfree.tune(values, options, out=tmp_path / "out")
    assert len(tuned.trials) == 14
    stopped = [trial for trial in tuned.trials if trial["kind"] == "pruned"]
    assert stopped
    assert all(trial["reason"].startswith("stopped by the pruner after epoch ") for trial in stopped)
    assert min(trial["epochs"] for trial in stopped) < 9
    assert tuned.best["params"]["optimizer.lr"] > 1e-6


def test_what_cannot_go_together_is_refused_before_training_and_what_diverges_is_no_crash(tmp_path):
    rules = {"search": "choice", "values": ["drtp", "dfa", "noprop_dt"]}
    lr = {"search": "choice", "values": [0.01, 1e30]}
    tasks = {"search": "choice", "values": ["classify", "reconstruct"]}
    values = tiny(rule=rules, task=tasks, optimizer={"name": "sgd", "lr": lr}, train={"epochs": 1})
    tuned = bpfree.tune(values, ["tune.sampler=grid", "tune.metric=loss"], out=tmp_path / "out")
    assert (tuned.metric, len(tuned.trials)) == ("validation/loss", 12)
    assert {t["params"]["rule"] for t in tuned.trials if t["value"] is not None} == {"drtp", "dfa"}
    refusals = {(t["params"]["rule"], t["params"]["task"]) for t in tuned.trials if t["kind"] == "refused"}
    assert refusals == {("drtp", "reconstruct"), ("noprop_dt", "classify"), ("noprop_dt", "reconstruct")}
    assert {t["params"]["optimizer.lr"] for t in tuned.trials if t["kind"] == "diverged"} == {1e30}
    for trial in tuned.trials:
        if trial["kind"]:
            assert (trial["state"], trial["value"], trial["epochs"]) == ("pruned", None, 0)
            assert {"refused": " needs ", "diverged": "training diverged"}[trial["kind"]] in trial["reason"]


def test_a_search_of_which_every_trial_is_refused_says_why_and_may_be_mended(tmp_path, config_file):
    path, out = config_file(rule="noprop_dt"), tmp_path / "out"
    line = refused("tune", path, "tune.trials=3", "--out", out)
    assert (
        "every one of 3 trials was refused. Trial 0: net: found Sequential, but NoProp needs denoising blocks" in line
    )
    assert shell("tune", path, "tune.trials=2", "rule=dfa", "--out", out).exit_code == 0
    assert states(out) == {"complete": 2}


def test_a_study_goes_on_as_it_was_begun_or_not_at_all(tmp_path, config_file):
    path, out = config_file(), tmp_path / "out"
    assert shell("tune", path, "tune.trials=1", "--out", out).exit_code == 0
    before = (out / "study.json").read_bytes()
    for override, difference in {
        "optimizer.lr.low=0.01": "optimizer.lr.low=1e-4, found 0.01",
        "train.epochs=3": "train.epochs=2, found 3",
        "tune.metric=loss": "tune.metric=validation/accuracy, found validation/loss",
        "tune.repeats=2": "tune.repeats=1, found 2",
    }.items():
        assert f"the study out was begun with {difference}" in refused("tune", path, override, "--out", out)
    assert (out / "study.json").read_bytes() == before
    run = tmp_path / "run"
    bpfree.fit("mlp", "digits", "dfa", epochs=1, out=run)
    assert "holds another run" in refused("tune", path, "--out", run)
    assert shell("tune", path, "tune.trials=2", "train.device=cpu", "--out", out).exit_code == 0
    assert states(out) == {"complete": 2}


def test_the_time_may_be_limited(tmp_path, config_file):
    path, out = config_file(), tmp_path / "out"
    assert shell("tune", path, "tune.trials=1000", "tune.timeout=2", "--out", out).exit_code == 0
    assert 0 < states(out)["complete"] < 1000
    assert "no trial was finished" in refused("tune", path, "tune.timeout=1e-9", "--out", tmp_path / "other")


# Workers that end before their time


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


@pytest.fixture
def start():
    """Starts a command; none outlives its test."""
    with ExitStack() as stack:

        def run(path, out, *args):
            command = list(map(str, [sys.executable, "-m", "bpfree", "tune", path, *args, "--out", out]))
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, **pipes))
            stack.callback(process.kill)
            return process

        yield run


def its_running_trial(study, pid):
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next((t for t in running if t.user_attrs.get("worker", "").endswith(f":{pid}") and t.params), None)


def kill_9_within_a_trial(study, process):
    """The trial that the process was at."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            trial = its_running_trial(study, process.pid)
        except (StorageInternalError, SQLAlchemyError):  # it was stopped while it was writing
            trial = None
        if trial is not None:
            process.kill()
            return trial
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_two_workers_one_is_killed_and_nothing_but_its_trial_is_lost(start, tmp_path, config_file):
    """Thirty trials, two real processes, kill -9 in the middle; then a resume, and the best config is trained again."""
    path, out = config_file(rule=RULES), tmp_path / "out"
    args = ["tune.trials=30", "tune.grace=4"]
    workers = [start(path, out, *args) for _ in range(2)]
    wait_for((out / "trials" / "0007" / "result.json").exists)
    study = in_database(out)
    wait_for(lambda: all(any(f":{w.pid}" in t.user_attrs.get("worker", "") for t in study.trials) for w in workers))
    before = {t.number: t for t in study.get_trials(states=(TrialState.COMPLETE,))}
    killed = kill_9_within_a_trial(study, workers[0])
    shown, errors = workers[1].communicate()
    workers[0].communicate()
    assert workers[1].returncode == 0, errors
    assert "30 complete" in shown
    assert states(out) == {"complete": 30, "failed": 1}
    trials = {trial["number"]: trial for trial in the_study(out)["trials"]}
    assert trials[killed.number]["state"] == "failed"
    assert trials[killed.number]["reason"] == "its worker ended without a word"
    (retry,) = [trial for trial in trials.values() if trial["retry_of"] == killed.number]
    assert (retry["state"], retry["params"]) == ("complete", killed.params)
    assert all(trials[n]["value"] == t.value and trials[n]["params"] == t.params for n, t in before.items())
    assert shell("tune", path, "tune.trials=32", "--out", out).exit_code == 0, "the study goes on by the same command"
    assert states(out) == {"complete": 32, "failed": 1}
    assert retrained(out, tmp_path)["validation"]["accuracy"] == the_study(out)["best"]["value"]


def test_ctrl_c_puts_the_trial_back_and_the_same_command_goes_on(start, tmp_path, config_file):
    path, out = config_file(train={"epochs": 12}), tmp_path / "out"
    for workers in ("1", "2"):
        process = start(path, out, "tune.trials=1000", "--workers", workers)
        finished = len(list(out.glob("trials/*/result.json")))
        wait_for(lambda enough=finished + 2: len(list(out.glob("trials/*/result.json"))) >= enough)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        assert errors.strip() == "interrupted. What is finished is kept; the same command goes on"
        trials = in_database(out).trials
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        waiting = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        assert {f.user_attrs["reason"] for f in failed} == {"KeyboardInterrupt"}
        assert all(params in [f.params for f in failed] for params in waiting)
        assert len(waiting) == int(workers)
    enough = sum(trial.state == TrialState.COMPLETE for trial in trials) + 2
    assert shell("tune", path, f"tune.trials={enough}", "--out", out).exit_code == 0
    assert states(out)["complete"] == enough


def test_a_process_that_loses_a_worker_ends_with_the_others(start, tmp_path, config_file):
    path, out = config_file(), tmp_path / "out"
    process = start(path, out, "tune.trials=16", "tune.grace=2", "--workers", "2")
    wait_for((out / "trials" / "0002" / "result.json").exists)
    study = in_database(out)
    wait_for(lambda: study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    os.kill(int(study.get_trials(deepcopy=False)[0].user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert states(out)["complete"] == 16


def test_when_every_worker_ends_early_its_last_words_are_told(tmp_path, config_file, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.exit('no such machine')\n")
    line = refused("tune", config_file(), "--workers", "2", "--out", tmp_path / "out")
    assert "every worker ended early" in line
