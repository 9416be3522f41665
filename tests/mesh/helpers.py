"""Start several processes of a training, and wait for them."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


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
