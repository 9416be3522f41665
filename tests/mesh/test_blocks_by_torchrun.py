"""`torchrun -m bpfree train ... train.mesh=blocks`: killed, stopped, and resumed by another number of processes."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import bpfree
from bpfree.runs import tensor_files
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.helpers import same, without_pictures
from tests.mesh.torchrun import children, finished, started
from tests.runs.test_run import finished_epochs

CONFIG = "digits/mono_forward"
OVERRIDES = ["net.hidden=[32, 24]", "net.dropout=0.1", "train.epochs=10", "train.mesh=blocks"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are found in /proc")


def weights(run: Path) -> dict[str, object]:
    """The tensors of net, rule and optimiser in the last checkpoint."""
    return {
        f"{name}:{key}": tensor
        for name in tensor_files.NAMES
        for key, tensor in tensor_files.read(run / "last.ckpt", name).items()
    }


def history(run: Path) -> list[dict[str, float]]:
    """The training metrics of each epoch."""
    return [json.loads(line)["train"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("blocks") / "alone"
    with without_pictures():
        train(load_config(CONFIG, OVERRIDES), out=run)
    return run


def begun(run: Path, restarts: int = 0, epochs: int = 2):
    """A training by two processes that has finished some epochs."""
    process = started("tests.mesh.undrawn", "train", CONFIG, *OVERRIDES, "--out", run, restarts=restarts)
    while finished_epochs(run) < epochs and process.poll() is None:
        time.sleep(0.002)
    return process


def test_a_killed_process_is_started_again_and_the_bits_are_those_of_one_process(alone, tmp_path):
    run = tmp_path / "torn"
    process = begun(run, restarts=2)
    os.kill(children(process)[1], signal.SIGKILL)
    finished(process)
    files = {path.name for path in (run / "last.ckpt").iterdir()}
    assert {"weights-1-of-2.safetensors", "weights-2-of-2.safetensors", "state.json"} <= files
    assert same(weights(run), weights(alone))
    assert same(bpfree.load(run).net.state_dict(), bpfree.load(alone).net.state_dict())
    for found, expected in zip(history(run), history(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_ctrl_c_and_a_resume_by_other_numbers_of_processes(alone, tmp_path, undrawn):
    run = tmp_path / "stopped"
    process = begun(run)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "go on with: torchrun --nproc-per-node 2 -m bpfree train --resume" in errors
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["why"] == "interrupted"
    shutil.copytree(run, tmp_path / "by-one")
    finished(started("tests.mesh.undrawn", "train", "--resume", run, processes=3))
    assert same(weights(run), weights(alone))
    bpfree.resume(tmp_path / "by-one")
    assert same(weights(tmp_path / "by-one"), weights(alone))
    assert finished_epochs(run) == finished_epochs(tmp_path / "by-one") == 10
