"""TensorBoard on run folders, for `bpfree board`.

TensorBoard runs in its own process, through the function that its command `tensorboard` calls. It takes one folder with
all runs.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bpfree.errors import UserError
from bpfree.lab.jobs.fork_server import python

_EVENTS = "events.out.tfevents.*"
_GRACE = 5.0  # seconds from the request to end until TensorBoard is killed


def serve(paths: Sequence[Path], port: int | None, on_message: Callable[[str], object]) -> None:
    """Run TensorBoard's server on run folders until Ctrl-C.

    Args:
        paths: run folders, or folders of run folders.
        port: the port of the server; 0 for any free port; None for 6006 or the next free port.
        on_message: called with the address when the server is ready, and with a sentence when it has ended.

    Raises:
        UserError: a folder holds no events for TensorBoard, or the server cannot be started.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"board: found {path}, allowed: a run folder or a folder of runs. `bpfree train` makes a run"
            )
        if next(path.rglob(_EVENTS), None) is None:
            raise UserError(
                f"board: {path} holds no run with events for TensorBoard. Give a folder that `bpfree train` wrote"
            )
    with _one_folder(paths) as folder:
        _run(folder, port, on_message)


def _run(folder: Path, port: int | None, on_message: Callable[[str], object]) -> None:
    """Run TensorBoard on one folder in its own process, until it ends or Ctrl-C is pressed.

    Args:
        folder: the folder that holds the runs.
        port: as in `serve`.
        on_message: as in `serve`.

    Raises:
        UserError: TensorBoard ends with an error; the message holds its last line.
    """
    command = [*python("tensorboard.main", "run_main"), "--logdir", str(folder)]
    command += [] if port is None else ["--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=_quiet())
    assert process.stderr is not None
    last = ""
    try:
        for line in process.stderr:  # read to its end: a full pipe would block TensorBoard
            if address := re.search(r"http://\S+", line):
                on_message(f"TensorBoard: {address[0]} (Ctrl-C ends it)")
            last = line.strip() or last
        if process.wait() != 0:
            raise UserError(f"board: TensorBoard ended: {last or f'exit code {process.returncode}'}")
    except KeyboardInterrupt:
        on_message("TensorBoard has ended")
    finally:
        _end(process)


def _quiet() -> dict[str, str]:
    """Return an environment without Python's warnings, in which each line of output arrives at once."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


def _end(process: subprocess.Popen[str]) -> None:
    """End a process: politely, or by force after `_GRACE` seconds."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


@contextmanager
def _one_folder(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the folder for TensorBoard, which takes only one: the given folder, or a new one with links to all."""
    if len(paths) == 1:
        yield paths[0]
        return
    with tempfile.TemporaryDirectory(prefix="bpfree-board-") as together:
        for number, path in enumerate(paths, 1):
            name = path.resolve().name  # TensorBoard shows it; a number tells apart two folders of the same name
            link = Path(together, name)
            (Path(together, f"{name}-{number}") if link.is_symlink() else link).symlink_to(path.resolve())
        yield Path(together)
