"""bpfree board, as it is called."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import bpfree
from tests.helpers import without_pictures
from tests.test_cli import refused


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "runs"
    with without_pictures():
        for name in ("one", "two"):
            bpfree.fit("mlp", "digits", "dfa", epochs=1, out=folder / name)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent to a process by a signal")
@pytest.mark.parametrize("named", [[], ["runs/one", "runs/two"]])
def test_tensorboard_shows_the_runs_until_ctrl_c(runs, named):
    command = [sys.executable, "-m", "bpfree", "board", *named, "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=runs.parent, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **streams) as process:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        shown, deadline = [], time.monotonic() + 30
        while len(shown) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            with urllib.request.urlopen(f"{url}data/runs") as answer:
                shown = json.load(answer)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert sorted(shown) == ["one", "two"]
    assert (process.returncode, out, err) == (0, "TensorBoard has ended\n", "")


def test_board_refuses(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "board: found runs, allowed: a run folder or a folder of runs" in refused("board")
    assert "holds no run with events" in refused("board", tmp_path)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        line = refused("board", runs, "--port", taken.getsockname()[1])
    assert "board: TensorBoard ended: " in line
    assert "in use" in line
