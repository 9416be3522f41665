"""Start several processes of a training, and wait for them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from filelock import FileLock


def run_processes(module: str, processes: int, folder: Path, names: Iterable[object]) -> Path:
    """Run `python -m MODULE RANK SIZE FOLDER NAME...` for each rank, and return the folder."""
    words = [str(processes), str(folder), *map(str, names)]
    started = [
        subprocess.Popen([sys.executable, "-m", module, str(rank), *words], stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills, in one of the processes that run the tests; the others wait for it."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if several else factory.getbasetemp()) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".done").exists():
            folder.mkdir()
            make(folder)
            folder.with_suffix(".done").touch()
    return folder
