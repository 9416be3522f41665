"""Real processes for the tests of the lab."""

import subprocess
import sys
from contextlib import ExitStack

import pytest


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
