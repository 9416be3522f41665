"""The command line in several processes that torchrun started: what each of them prints, and how all of them end.

The first process prints everything. Another one prints only an error that the first one does not have.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from bpfree.mesh import launched, local_rank, rank_of_process
from bpfree.mesh.job import attempt, attempts_left, note, noted

_WAIT = 5.0  # seconds in which the first process comes to an error that all processes have


def run(app: Callable[..., Any]) -> None:
    """Run the command line; another process than the first prints neither help nor errors of the arguments.

    Args:
        app: the command line.
    """
    if rank_of_process() == 0:
        app()
        return
    with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
        try:
            code = app(standalone_mode=False)
        except Exception as error:
            code = getattr(error, "exit_code", None)  # of an error of the arguments
            if code is None:
                raise
    sys.exit(code)


def refuse_several(command: str) -> None:
    """Raise typer.Exit after an error if torchrun started several processes for a command that is made for one.

    Args:
        command: its name.
    """
    if launched() > 1 and command != "train":
        tell(f"error: `bpfree {command}` runs in one process, found {launched()}. Start it without torchrun")
        end_torchrun()
        raise typer.Exit(2)


def tell(text: str, hint: str = "", *, follows: bool = False) -> None:
    """Print an error on standard error, once for all processes.

    Args:
        text: one line.
        hint: is added to the line.
        follows: True if the error may follow from that of another process, which then is the one to read.
    """
    rank, key = rank_of_process(), f"told {attempt()}"
    _tell_torchrun(text)
    if rank == 0:
        typer.echo(text + hint, err=True)
        note(key, text)  # after it is printed: the other processes end now, and torchrun then ends this one
    elif (first := noted(key, wait=_WAIT)) is None or not (follows or first == text):
        typer.echo(f"process {rank}: {text}{hint}", err=True)


def _tell_torchrun(text: str) -> None:
    """Write an error to the file that torchrun reads, so that its table of failures has the line."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None and launched() > 1:
        # The form of torch.distributed.elastic.multiprocessing.errors.ErrorHandler, which would add a traceback.
        now = str(int(time.time()))
        message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": now}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")


def tell_stop(text: str) -> None:
    """Print in the first process that the user has stopped all of them.

    Args:
        text: one line.
    """
    if rank_of_process() == 0:
        typer.echo(text, err=True)


def end_torchrun() -> None:
    """End torchrun after an error that would come again if it started its processes again, as it would now."""
    # torchrun starts each process as the leader of a session; one that such a process has started is not meant.
    if attempts_left() > 0 and local_rank() == 0 and os.getsid(0) == os.getpid():
        os.kill(os.getppid(), signal.SIGTERM)


def command() -> str:
    """Return how the user called bpfree, to show how to go on."""
    return "bpfree" if launched() == 1 else f"torchrun --nproc-per-node {_on_this_machine()} -m bpfree"


def _on_this_machine() -> str:
    return os.environ.get("LOCAL_WORLD_SIZE", "1")
