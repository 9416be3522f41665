"""1,000 hostile inputs: each is refused in words or read, without a traceback, a hang, an execution or a loss.

A sample of them runs with every suite; all of them with `-m slow`.
"""

import os
import shutil
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import bpfree
from bpfree.api import resume
from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.hostile import readers, tamper, texts
from tests.hostile.guard import Guarded, HangError, limited, lost, names, refused_or_done, shell
from tests.runs.test_run import power_cut

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes and signals to test with")
KINDS = {"state": 300, "result": 100, "config": 160, "files": 150, "texts": 130, "commands": 90, "readers": 70}
SAMPLE = {"state": 16, "result": 6, "config": 8, "files": 16, "texts": 12, "commands": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is over, and one that was interrupted; both have all files."""
    root = tmp_path_factory.mktemp("templates")
    values = {
        "data": {"name": "digits", "fraction": 0.2, "batch_size": 64},
        "net": {"name": "mlp", "hidden": [8]},
        "rule": "mono_forward",
        "schedule": "cosine",
        "trackers": ["weights"],
        "train": {"epochs": 2, "early_stopping": {"patience": 5}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpfree.runs.run.draw", lambda *_: [])
        patch.setattr("bpfree.runs.keeper.wait_for_a_new_second", lambda _: None)
        train(parse(values), out=root / "over")
        with power_cut(patch, 6), pytest.raises(RuntimeError):
            train(parse(values), out=root / "torn")
        yield root


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("bpfree.runs.keeper.wait_for_a_new_second", lambda _: None)
    return Guarded(tmp_path)


def spread(cases, count):
    """As many of the cases, from all over them."""
    return cases if len(cases) <= count else [cases[i * len(cases) // count] for i in range(count)]


def actions_on(run: Path, number: int):
    """What is done with a spoiled run; drawing takes long, so not with each."""

    def predict():
        loaded = bpfree.load(run)
        loaded.predict(bpfree.data.DATASETS["digits"](run).test.x[:2])

    slow = [shell("report", run), shell("plots", run), shell("certify", run), shell("eval", run)][number % 4]
    return [predict, partial(resume, run), *([slow] if number % 3 == 0 else [])]


def try_spoiled(name, spoil, template, guarded, number):
    run = guarded.root / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(template, run)
    guarded.plant(run)
    spoil(run)
    before = names(run)
    for action in actions_on(run, number):
        with told_of(name):
            refused_or_done(action)
            assert not lost(before, run), f"{lost(before, run)} is gone"
            guarded.check()


@contextmanager
def told_of(case):
    """A failure says which case it is of; all cases are tried, and `failures` are told at the end."""
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        failures.append(f"{case!r:.200}: {type(error).__name__}: {error!s:.300} ({last.filename}:{last.lineno})")
    except HangError as error:
        failures.append(f"{case!r:.200}: hang: {error}")


failures = []


def spoiled_runs(kind, runs, guarded, count):
    torn, over = runs / "torn", runs / "over"
    cases = {
        "state": lambda: [(*case, torn) for case in tamper.values_of(torn, "last.ckpt/state.json")],
        "result": lambda: [(*case, over) for case in tamper.values_of(over, "result.json")],
        "config": lambda: [(*case, torn) for case in tamper.values_of(torn, "config.yaml")],
        "files": lambda: [(*case, template) for case in tamper.files_of(guarded.outside) for template in (torn, over)],
    }[kind]()
    for number, (name, spoil, template) in enumerate(spread(cases, count)):
        try_spoiled(name, spoil, template, guarded, number)


def hostile_texts(guarded, count):
    def from_file(text):
        (guarded.root / "my.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
        return partial(load_config, str(guarded.root / "my.yaml"))

    cases = [(name, from_file, text) for name, text in texts.CONFIGS.items()]
    cases += [(text[:60], lambda text: partial(load_config, "digits/dfa", [text]), text) for text in texts.OVERRIDES]
    for name, make, text in spread(cases, count):
        with told_of(name):
            refused_or_done(make(text))
            guarded.check()


def hostile_commands(runs, guarded, count):
    shutil.copytree(runs / "over", guarded.root / "run")
    for arguments in spread(texts.commands("run"), count):
        before = names(guarded.root) | {"data", "runs"}
        with told_of(arguments):
            refused_or_done(shell(*arguments))
            guarded.check()
            assert not names(guarded.root) - before, "it wrote into the current folder"


def hostile_readers(guarded, count):
    for name, arguments, make in spread(readers.cases(), count):
        place = guarded.root / "samples"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        make(place)
        with told_of(name):
            refused_or_done(shell("train", *arguments, "train.epochs=1", "train.device=cpu"))
            guarded.check()


def run_kind(kind, count, runs, guarded):
    failures.clear()
    if kind == "texts":
        hostile_texts(guarded, count)
    elif kind == "commands":
        hostile_commands(runs, guarded, count)
    elif kind == "readers":
        hostile_readers(guarded, count)
    else:
        spoiled_runs(kind, runs, guarded, count)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_of_hostile_inputs(kind, runs, guarded):
    run_kind(kind, SAMPLE[kind], runs, guarded)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_1000_hostile_inputs(kind, runs, guarded):
    assert sum(KINDS.values()) == 1000
    run_kind(kind, KINDS[kind], runs, guarded)


def test_the_guard_itself_sees_what_it_is_for(guarded):
    with pytest.raises(HangError), limited(0.05):
        time.sleep(5)
    (guarded.outside / "notes.txt").write_text("changed")
    with pytest.raises(AssertionError, match="files outside were changed"):
        guarded.check()
