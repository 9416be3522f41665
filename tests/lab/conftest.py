"""Real processes for the tests of the lab, and comparisons without any."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

import bpfree
from bpfree.lab.jobs.here import run_here


@pytest.fixture
def trained_here(monkeypatch):
    """Comparisons train in this process; a process for each job would first import everything."""
    module = sys.modules[bpfree.compare.__module__]
    monkeypatch.setattr(module, "run_jobs", lambda jobs, at_once, on_progress: run_here(jobs, on_progress))


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
