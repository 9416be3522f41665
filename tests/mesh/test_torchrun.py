"""`torchrun -m bpfree train`: one process prints and writes, Ctrl-C ends all, errors are told once."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bpfree
from bpfree.cli import app, several
from bpfree.errors import UserError
from bpfree.runs import checkpoint, device
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.helpers import same
from tests.mesh.torchrun import CONFIG, finished, overrides, started, training, weights
from tests.runs.test_run import finished_epochs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun does not end its processes by signals")


def test_the_first_process_prints_and_writes(whole):
    run, out, errors = whole
    (line,) = out.splitlines()
    assert line.startswith("mono_forward on digits: test accuracy")
    assert line.endswith(f"Run: {run}")
    begun, *epochs = errors.splitlines()
    assert begun == "training mlp by mono_forward on digits: 12 epochs on cpu"
    assert [epoch.split()[:2] for epoch in epochs] == [["epoch", f"{n}/12"] for n in range(1, 13)]
    result = json.loads((run / "result.json").read_text())
    assert (result["processes"], result["mesh"]) == (2, "data")
    assert result["test"] == bpfree.load(run).with_test(load_config(CONFIG).data.load().test).evaluate()


def test_two_processes_train_as_one(whole, tmp_path, undrawn):
    one = train(load_config(CONFIG, overrides()), out=tmp_path / "one")
    expected, found = weights(tmp_path / "one"), weights(whole.run)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    mine, theirs = one.result, json.loads((whole.run / "result.json").read_text())
    assert mine.keys() == theirs.keys()
    assert theirs["queries"] == mine["queries"]


def wait_for(process: subprocess.Popen[str], run: Path, epochs: int) -> None:
    while finished_epochs(run) < epochs and process.poll() is None:
        time.sleep(0.002)


def test_ctrl_c_ends_all_processes_after_the_same_step(whole, tmp_path, undrawn):
    run = tmp_path / "torn"
    process = started(*training(run))
    wait_for(process, run, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    go_on = f"go on with: torchrun --nproc-per-node 2 -m bpfree train --resume {run}"
    told = [line for line in errors.splitlines() if line.startswith(("interrupted", "error", "process"))]
    assert told == [f"interrupted. The last good checkpoint is kept; {go_on}"]
    assert errors.count("Traceback") == 1, "that of torchrun"
    stopped = checkpoint.read_state(run / "last.ckpt").progress.step
    assert 2 * 40 <= stopped < 12 * 40
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["why"] == "interrupted"
    shutil.copytree(run, tmp_path / "by-one")
    finished(started("tests.mesh.undrawn", "train", "--resume", run))
    assert same(weights(run), weights(whole.run))
    bpfree.resume(tmp_path / "by-one")
    for name, tensor in weights(tmp_path / "by-one").items():
        torch.testing.assert_close(weights(whole.run)[name], tensor, rtol=1e-5, atol=1e-5)


def test_an_error_is_told_once_and_does_not_come_again(tmp_path):
    process = started("bpfree", "train", CONFIG, "rule.nonsense=1", "--out", tmp_path / "run", restarts=3)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert errors.splitlines()[0].startswith("error: unknown key 'rule.nonsense'")
    assert len([line for line in errors.splitlines() if line.startswith(("error", "process"))]) == 1
    assert errors.count("Traceback") == 1, "that of torchrun"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)


def test_other_commands_are_refused(monkeypatch, second_of_two):
    monkeypatch.setenv("RANK", "0")
    found = CliRunner().invoke(app, ["list", "rules"])
    assert found.exit_code == 2
    assert found.stderr.splitlines() == ["error: `bpfree list` runs in one process, found 2. Start it without torchrun"]


@pytest.mark.parametrize("start", [bpfree.compare, bpfree.tune])
def test_many_trainings_are_not_started_by_each_process(start, second_of_two, tmp_path):
    with pytest.raises(UserError, match="found 2 processes of torchrun, which would all start the same trainings"):
        start("digits/dfa", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", ["error: a", "error: b", None])
def test_another_process_tells_what_the_first_does_not(first, monkeypatch, second_of_two, capsys):
    monkeypatch.setattr(several, "noted", lambda key, wait: first)
    assert several.tell("error: a", ". Go on") == (first != "error: a")
    assert capsys.readouterr().err == ("" if first == "error: a" else "process 1: error: a. Go on\n")


@pytest.mark.parametrize(("first", "is_claimed"), [("error: b", False), (None, False), (None, True)])
def test_a_lost_process_is_told_once(first, is_claimed, monkeypatch, second_of_two, capsys):
    monkeypatch.setattr(several, "noted", lambda key: first)
    monkeypatch.setattr(several, "claim", lambda key: not is_claimed)
    several.tell_lost("error: lost", ". Go on")
    assert capsys.readouterr().err == ("error: lost. Go on\n" if first is None and not is_claimed else "")


def test_several_processes_that_train_apart_do_not_write_one_folder(second_of_two, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    found = CliRunner().invoke(app, ["train", CONFIG, "train.mesh=none"])
    assert found.exit_code == 2
    assert "each of the 2 processes would train by itself" in found.stderr


def test_each_process_of_a_machine_gets_its_own_gpu(second_of_two, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device._fastest() == "cuda:1"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="found 'auto' in 3 processes on a machine with GPUs for 2"):
        device._fastest()
