"""The command line in several processes that torchrun started: what each of them prints, and how all of them end.

The first process prints everything. Another one prints only an error that the first one does not have.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from bpfree.mesh import launched, local_rank, processes_here, rank_of_process
from bpfree.mesh.job import attempt, attempts_left, claim, note, noted

_PARENT = os.getppid()
_WAIT = 5.0  # seconds in which the first process comes to an error that all processes have


def run(app: Callable[..., Any]) -> None:
    """Run the command line; another process than the first prints neither help nor errors of the arguments.

    Args:
        app: the command line.
    """
    if launched() == 1:
        app()
        return
    code = _exit_code(app)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: threads of torch that still serve other processes abort an ordinary exit now and then.
    os._exit(code)


def _exit_code(app: Callable[..., Any]) -> int:
    try:
        if rank_of_process() == 0:
            app()
            return 0
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            return app(standalone_mode=False) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        if (code := getattr(error, "exit_code", None)) is None:  # else it is an error of the arguments
            traceback.print_exc()
        return 1 if code is None else int(code)
    finally:
        sys.stdout = sys.__stdout__ if sys.__stdout__ is not None else sys.stdout


def refuse_several(command: str) -> None:
    """Raise typer.Exit after an error if torchrun started several processes for a command that is made for one.

    Args:
        command: its name.
    """
    if launched() > 1 and command != "train":
        end_torchrun(
            tell(f"error: `bpfree {command}` runs in one process, found {launched()}. Start it without torchrun")
        )
        raise typer.Exit(2)


def tell(text: str, hint: str = "") -> bool:
    """Print an error on standard error, once if all processes have it, and return True if this process printed it.

    Args:
        text: one line.
        hint: is added to the line.
    """
    rank = rank_of_process()
    _tell_torchrun(text)
    if rank == 0:
        typer.echo(text + hint, err=True)
        note(_told(), text)  # after it is printed: the other processes end now, and torchrun then ends this one
        return True
    if noted(_told(), wait=_WAIT) == text:
        return False
    typer.echo(f"process {rank}: {text}{hint}", err=True)
    return True


def tell_lost(text: str, hint: str = "") -> None:
    """Print that another process is lost, once for all processes, unless the first one has ended with an error.

    Args:
        text: one line.
        hint: is added to the line, unless torchrun starts the processes again by itself.
    """
    _tell_torchrun(text)
    # Whichever comes first: torchrun ends the processes that are left within a tenth of a second.
    if noted(_told()) is None and claim(f"lost {attempt()}"):
        typer.echo(text + (hint if attempts_left() == 0 else ""), err=True)


def _told() -> str:
    """Return the name of the note with the error of the first process."""
    return f"told {attempt()}"


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


def end_torchrun(has_told: bool) -> None:
    """End torchrun after an error that would come again if it started its processes again, as it would now.

    Args:
        has_told: True if this process has told the error. On other machines the first process ends torchrun.
    """
    if attempts_left() > 0 and (has_told or local_rank() == 0) and _is_started_by_torchrun():
        os.kill(os.getppid(), signal.SIGTERM)


def _is_started_by_torchrun() -> bool:
    """Return True if the parent of this process is the torchrun that started it."""
    session = getattr(os, "getsid", None)  # Windows has none
    # torchrun makes its processes leaders of sessions, and what they start is not. If torchrun has died, the parent is
    # another process, which must not be ended.
    return session is not None and session(0) == os.getpid() and os.getppid() == _PARENT != 1


def command() -> str:
    """Return how the user called bpfree, to show how to go on."""
    return "bpfree" if launched() == 1 else f"torchrun --nproc-per-node {processes_here()} -m bpfree"
