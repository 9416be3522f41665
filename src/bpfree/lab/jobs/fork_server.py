"""Trainings in their own processes, without the seconds that each process would need to import torch.

A server process imports everything once and forks for each training. What the forked child changes is gone when it
ends. On a system that cannot fork (Windows), each training starts a Python interpreter.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from bpfree.errors import UserError
from bpfree.training.allocator import without_caches

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
KILLED_SERVER = -256  # not a status of any child: signals have numbers below 128
_ROOT = Path(__file__).parents[3]  # the folder that holds the package bpfree


def python(module: str, function: str) -> list[str]:
    """Return the command line of a new Python interpreter that imports one function and calls it.

    Args:
        module: name of a module of bpfree or of a library.
        function: name of a function in it, called without arguments.
    """
    # `python -c` puts the current folder (as "") first on the path, where a file torch.py would replace the library.
    path = f"import sys; sys.path[:] = [*filter(None, sys.path), {str(_ROOT)!r}]"
    return [sys.executable, "-c", f"{path}; from {module} import {function}; {function}()"]


class Server:
    """A process that runs trainings one after the other, each in a fork of itself and with one thread.

    The server has its own session. So a Ctrl-C at the terminal does not reach it: `interrupt` decides when the training
    ends, and the parent can wait for its checkpoint.

    Attributes:
        process: the server; without `os.fork` the interpreter of the latest training.

    Raises:
        UserError: the interpreter cannot be started.
    """

    def __init__(self) -> None:
        self.process = _start(python(__name__, "serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, config_file: Path, run: Path, log: Path) -> int:
        """Train as a config file says, and wait until the training ends.

        Args:
            config_file: a complete config.
            run: the run folder; a run that was begun there goes on.
            log: the file that gets the standard output and standard error of the training.

        Returns:
            The exit status of `bpfree.lab.jobs.child.train_job`; the negative number of the signal if the training was
            killed; KILLED_SERVER if the server was killed.

        Raises:
            UserError: the interpreter cannot be started.
            OSError: without `os.fork`: the log cannot be written.
        """
        if not hasattr(os, "fork"):
            with open(log, "wb") as out:
                command = [*python("bpfree.lab.jobs.child", "main"), str(config_file), str(run)]
                self.process = _start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            return self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"config_file": str(config_file), "run": str(run), "log": str(log)}
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        # A server that was killed closes the pipe: then the line is empty or cut short.
        line = self.process.stdout.readline()
        return int(line) if line.endswith(b"\n") else KILLED_SERVER

    def interrupt(self) -> None:
        """Send Ctrl-C to the training that runs now."""
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                # The group is the server, which ignores the signal, and its child, which does not.
                os.killpg(self.process.pid, signal.SIGINT)
            else:
                self.process.terminate()  # Windows cannot send Ctrl-C to one process alone

    def close(self) -> None:
        """End the server; no training may be running."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()


def _start(command: list[str], **streams: Any) -> "subprocess.Popen[bytes]":
    """Start a process in a new session and with one thread, or raise UserError."""
    # Both are read when the interpreter starts or torch is imported: too late for a fork.
    environment = os.environ | dict.fromkeys(_THREADS, "1") | without_caches()
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started ({error.strerror or error})") from error


def serve() -> None:
    """Import everything, then train what each line of standard input asks for, until standard input is closed.

    A line is a JSON object with the keys `config_file`, `run` and `log`. Standard output gets one line for each
    training: its exit status.
    """
    import_everything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        request = {key: Path(value) for key, value in json.loads(line).items()}
        child = os.fork()
        if child == 0:
            _train(request["config_file"], request["run"], request["log"])
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def import_everything() -> None:
    """Import every module that a training imports sooner or later, so that no child has to."""
    from tensorboard.compat.proto import event_pb2  # noqa: F401
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import bpfree.lab.jobs.child
    import bpfree.pictures.confusion
    import bpfree.pictures.noprop
    import bpfree.pictures.numbers  # noqa: F401


def _train(config_file: Path, run: Path, log: Path) -> NoReturn:
    """Train in the forked child, with the log as standard output and standard error, and end the process."""
    from bpfree.lab.jobs.child import train_job

    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        _redirect(log)
        status = train_job(config_file, run)
    except BaseException:
        traceback.print_exc()
    finally:
        # `sys.exit` would run the exit handlers of the server, and unwind into its loop.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    """Let standard input be empty, and send standard output and standard error to a file."""
    # Descriptors and not sys.stdout are replaced, so that the text of C libraries goes to the log too, and the pipes of
    # the server, where a stray word would be read as an exit status, are closed in the child.
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(log if number else os.devnull, flags, 0o644), number)
    os.dup2(1, 2)
