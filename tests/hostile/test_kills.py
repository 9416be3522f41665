"""Kills at random moments, with resumes and a rival for the lock: the weights come out as if nothing had happened."""

import os
import random
import signal
import subprocess
import time

import pytest

from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.helpers import same
from tests.runs.test_run import command, finished_epochs, weights

KILLS = int(os.environ.get("BPFREE_TEST_KILLS", "300"))
LONGEST = 1.5  # seconds from the first checkpoint to the kill
ARGS = ["digits/mono_forward", "train.epochs=150", "data.augment.shift=1", "optimizer.lr=0.003", "net.hidden=[32]"]
REFUSED = ("another process is writing to it", "holds another run")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")


def begun(folder, processes):
    """Wait until one of the processes has written its first file, or all have ended."""
    before = {path: path.stat().st_mtime_ns for path in folder.glob("events.*")} if folder.exists() else {}
    while any(process.poll() is None for process in processes):
        if any(path not in before for path in folder.glob("events.*")):
            return
        time.sleep(0.01)


def kill_and_resume(out, kills, chance):
    """Kill what trains `kills` times. In a third of the cases a rival starts at the same time, for the same folder.

    Returns:
        How many kills hit a training, and how often one of two rivals was refused.
    """
    hit = refused = 0
    while hit < kills and not (out / "result.json").exists():
        is_new = not (out / "config.yaml").exists()
        started = command("train", *ARGS, "--out", out) if is_new else command("train", "--resume", out)
        count = 1 + (chance.random() < 0.3)
        processes = [
            subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        if count == 2 or chance.random() < 0.8:
            begun(out, processes)
        time.sleep(chance.random() * LONGEST)
        for process in processes:
            hit += process.poll() is None
            process.send_signal(signal.SIGKILL)
            told = process.communicate()[1]
            refused += any(words in told for words in REFUSED)
            assert "Traceback" not in told, told
    return hit, refused


def check_kills(tmp_path, kills):
    chance, total, refused = random.Random(0), 0, 0
    train(load_config(ARGS[0], ARGS[1:]), out=tmp_path / "whole")
    number = 0
    while total < kills:
        out = tmp_path / f"torn-{number}"
        number += 1
        hit, no = kill_and_resume(out, kills - total, chance)
        total, refused = total + hit, refused + no
        subprocess.run(command("train", "--resume", out), check=True, stdout=subprocess.DEVNULL)
        for name in ("last.ckpt", "best.ckpt"):
            assert same(weights(tmp_path / "whole", name), weights(out, name)), f"{out}: {name} differs"
        assert finished_epochs(out) == finished_epochs(tmp_path / "whole")
    return total, refused


@pytest.mark.slow
def test_300_kills_with_a_rival_for_the_lock(tmp_path, undrawn):
    total, refused = check_kills(tmp_path, KILLS)
    assert total >= KILLS
    assert KILLS < 50 or refused > 0
