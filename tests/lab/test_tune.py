"""Searches: what may be left open, what is refused, and a best config that trains again to its value."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import yaml

import bpfree
from bpfree.lab.tune.plan import TuneConfig, make_plan
from bpfree.runs.config_file import load_config
from bpfree.runs.markers import find_markers, grid, resolve
from tests.lab.tuning import RULES, config_file, retrained, states, study_file, tiny
from tests.test_cli import refused, shell

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]

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
        ([], "digits/dfa: has no search marker, allowed: one or more, such as"),
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


def test_a_config_that_leaves_a_value_open_cannot_be_trained(tmp_path):
    path = config_file(tmp_path)
    line = refused("train", path)
    assert line == (
        f"error: {path}: optimizer.lr is left open by a search marker, allowed: a value. Use `bpfree tune` to find one"
    )
    config_file(tmp_path, tune={"trials": 3})
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
    found = study_file(out)
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


def test_what_the_docs_show(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "tune.md").read_text()
    monkeypatch.chdir(tmp_path)
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(python, "tune.md", "exec"), {})
    assert "'optimizer.lr': 0." in capsys.readouterr().out
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(TuneConfig.model_fields)
    assert make_plan(str(ROOT / "examples" / "tune.yaml")).out == Path("runs/tune-digits-rules")


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
    shown = shell("tune", config_file(tmp_path), *overrides, "--out", out)
    assert shown.exit_code == 0, shown.stderr
    best = study_file(out)["best"]
    assert best["value"] == sum(best["values"]) / 3 == min(t["value"] for t in study_file(out)["trials"])
    assert "the mean of " in shown.stdout
    assert retrained(out, tmp_path)["train"]["loss"] == best["values"][0]
    folder = out / "trials" / f"{best['number']:04}"
    assert {path.name for path in folder.iterdir()} == {"seed-5", "seed-6", "seed-7"}


def test_the_value_is_that_of_the_weights_that_early_stopping_gives_back(tmp_path):
    stopping = {"epochs": 30, "early_stopping": {"patience": 2}}
    lr = {"search": "choice", "values": [0.3, 0.5]}
    out = tmp_path / "out"
    tuned = bpfree.tune(tiny(train=stopping, optimizer={"name": "sgd", "lr": lr}), ["tune.trials=2"], out=out)
    assert retrained(out, tmp_path)["weights"] == "best"
    history = bpfree.load(tmp_path / "again").metrics
    assert tuned.best["value"] == max(record["validation"]["accuracy"] for record in history)


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
    lr = {"search": "choice", "values": [0.01, 1e38]}
    tasks = {"search": "choice", "values": ["classify", "reconstruct"]}
    values = tiny(rule=rules, task=tasks, optimizer={"name": "sgd", "lr": lr}, train={"epochs": 1})
    tuned = bpfree.tune(values, ["tune.sampler=grid", "tune.metric=loss"], out=tmp_path / "out")
    assert (tuned.metric, len(tuned.trials)) == ("validation/loss", 12)
    assert {t["params"]["rule"] for t in tuned.trials if t["value"] is not None} == {"drtp", "dfa"}
    refusals = {(t["params"]["rule"], t["params"]["task"]) for t in tuned.trials if t["kind"] == "refused"}
    assert refusals == {("drtp", "reconstruct"), ("noprop_dt", "classify"), ("noprop_dt", "reconstruct")}
    assert {t["params"]["optimizer.lr"] for t in tuned.trials if t["kind"] == "diverged"} == {1e38}
    for trial in tuned.trials:
        if trial["kind"]:
            assert (trial["state"], trial["value"], trial["epochs"]) == ("pruned", None, 0)
            words = ("cannot reconstruct", "needs denoising blocks", "training diverged")
            assert any(word in trial["reason"] for word in words)


def test_a_search_of_which_every_trial_is_refused_says_why_and_may_be_mended(tmp_path):
    path, out = config_file(tmp_path, rule="noprop_dt"), tmp_path / "out"
    line = refused("tune", path, "tune.trials=3", "--out", out)
    assert (
        "every one of 3 trials was refused. Trial 0: net: found Sequential, but NoProp needs denoising blocks" in line
    )
    assert shell("tune", path, "tune.trials=2", "rule=dfa", "--out", out).exit_code == 0
    assert states(out) == {"complete": 2}


def test_a_study_goes_on_as_it_was_begun_or_not_at_all(tmp_path):
    path, out = config_file(tmp_path), tmp_path / "out"
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


def test_the_time_may_be_limited(tmp_path):
    path, out = config_file(tmp_path), tmp_path / "out"
    assert shell("tune", path, "tune.trials=1000", "tune.timeout=2", "--out", out).exit_code == 0
    assert 0 < states(out)["complete"] < 1000
    assert "no trial was finished" in refused("tune", path, "tune.timeout=1e-9", "--out", tmp_path / "other")
