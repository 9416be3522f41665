"""Processes that are killed at random moments: torchrun starts again, and the run ends with the bits of a whole one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import same
from tests.mesh.torchrun import children, finished, started, training, weights
from tests.runs.test_run import finished_epochs

KILLS = int(os.environ.get("BPFREE_TEST_KILLS", "50"))
LONGEST = 1.5  # seconds from the first checkpoint to the kill
PROCESSES = 2

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are found in /proc")


def begun(run: Path, process: subprocess.Popen[str], known: set[Path]) -> None:
    """Wait until the training has written its first file after a start."""
    while process.poll() is None and set(run.glob("events.*")) <= known:
        time.sleep(0.01)


def kill_at_random(process: subprocess.Popen[str], run: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Kill a random process again and again, mostly while it trains.

    Returns:
        How often each rank was hit, and how often before the training began.
    """
    hit: Counter[str] = Counter()
    while hit.total() < kills and process.poll() is None:
        known = set(run.glob("events.*"))
        early = chance.random() < 0.2
        if early:
            time.sleep(chance.random() * 8)
        else:
            begun(run, process, known)
            time.sleep(chance.random() * LONGEST)
        pids = children(process)
        if len(pids) == PROCESSES and not (run / "result.json").exists():
            rank = chance.randrange(PROCESSES)
            try:
                os.kill(pids[rank], signal.SIGKILL)
            except ProcessLookupError:
                continue
            hit[f"rank {rank}, {'at any moment' if early else 'in training'}"] += 1
            while pids[rank] in children(process):  # until torchrun has noticed
                time.sleep(0.01)
    return hit


def check_kills(whole: Path, folder: Path, kills: int) -> Counter[str]:
    epochs = finished_epochs(whole)
    chance, hit, number = random.Random(0), Counter(), 0
    while hit.total() < kills:
        run = folder / f"torn-{number}"
        number += 1
        process = started(*training(run, epochs), restarts=1000)
        hit += kill_at_random(process, run, kills - hit.total(), chance)
        assert f"Run: {run}" in finished(process)[0]
        for name in ("last.ckpt", "best.ckpt"):
            assert same(weights(whole, name), weights(run, name)), f"{run}: {name} differs"
        assert finished_epochs(run) == epochs
    return hit


@pytest.mark.slow
def test_two_kills(whole, tmp_path):
    assert check_kills(whole.run, tmp_path, 2).total() == 2


@pytest.mark.slow
def test_fifty_kills(tmp_path, capsys):
    start = time.monotonic()
    finished(started(*training(tmp_path / "whole", epochs=300)))
    hit = check_kills(tmp_path / "whole", tmp_path, KILLS)
    with capsys.disabled():
        print(f"{hit.total()} kills in {time.monotonic() - start:.0f} s: {dict(hit)}")  # noqa: T201
    assert hit.total() >= KILLS
