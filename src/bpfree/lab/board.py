"""TensorBoard on runs."""

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
_GRACE = 5.0  # seconds that TensorBoard has to end


def serve(paths: Sequence[Path], port: int | None, tell: Callable[[str], object]) -> None:
    """Run TensorBoard's own server until Ctrl-C.

    Args:
        paths: run folders, or folders of such.
        port: to listen at, 0 for any that is free; None for TensorBoard's own choice.
        tell: called with the address once it listens.

    Raises:
        UserError: there is nothing to show, or it cannot be started.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"board: found {path}, allowed: a run folder or a folder of runs. `bpfree train` makes them"
            )
        if next(path.rglob(_EVENTS), None) is None:
            raise UserError(f"board: {path} holds no run with events for TensorBoard. `bpfree train` writes them")
    with _one_folder(paths) as folder:
        _run(folder, port, tell)


def _run(folder: Path, port: int | None, tell: Callable[[str], object]) -> None:
    command = [*python("tensorboard.main", "run_main"), "--logdir", str(folder)]
    command += [] if port is None else ["--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=_quiet())
    assert process.stderr is not None
    last = ""
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                tell(f"TensorBoard: {found[0]} (Ctrl-C ends it)")
            last = line.strip() or last
        if process.wait() != 0:
            raise UserError(f"board: TensorBoard ended: {last or f'exit code {process.returncode}'}")
    except KeyboardInterrupt:
        tell("TensorBoard has ended")
    finally:
        _end(process)


def _quiet() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


def _end(process: subprocess.Popen[str]) -> None:
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
    """The only folder that is given, else one with links to all, which TensorBoard follows."""
    if len(paths) == 1:
        yield paths[0]
        return
    with tempfile.TemporaryDirectory(prefix="bpfree-board-") as together:
        for number, path in enumerate(paths, 1):
            name = path.resolve().name
            link = Path(together, name)
            (Path(together, f"{name}-{number}") if link.is_symlink() else link).symlink_to(path.resolve())
        yield Path(together)
