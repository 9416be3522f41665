"""Commands in processes of their own, without the seconds that it takes to import torch for each.

A server imports everything once and forks for each command; what the child changes dies with it. Where a system cannot
fork, each command starts an interpreter.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from bpfree.errors import UserError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
KILLED_SERVER = -256  # no child can end so
_ROOT = Path(__file__).parents[2]  # where the package is


def python(module: str, function: str) -> list[str]:
    """The command that calls a function, of ours or of a library, in an interpreter of its own.

    Python would put the current folder first on its path, and a file there would take the place of a library.
    """
    path = f"import sys; sys.path[:] = [*filter(None, sys.path), {str(_ROOT)!r}]"
    return [sys.executable, "-c", f"{path}; from {module} import {function}; {function}()"]


class Server:
    """Runs `bpfree` commands, one at a time, with one thread each.

    It has a session of its own, so that a Ctrl-C at the terminal reaches its command only through `interrupt`.
    """

    def __init__(self) -> None:
        self.process = _start(python(__name__, "serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run `bpfree` with these arguments, what it says going to a file.

        Returns:
            The exit status; below 0 if it was killed, KILLED_SERVER if the server itself was.
        """
        if not hasattr(os, "fork"):
            with open(log, "wb") as out:
                command = [*python("bpfree.cli", "main"), *arguments]
                self.process = _start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            return self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"arguments": list(arguments), "log": str(log)}).encode() + b"\n")
            self.process.stdin.flush()
        told = self.process.stdout.readline()
        return int(told) if told.endswith(b"\n") else KILLED_SERVER

    def interrupt(self) -> None:
        """Ctrl-C for the command that runs."""
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGINT)
            else:
                self.process.terminate()  # Windows has no Ctrl-C for one process alone

    def close(self) -> None:
        """End it; no command may be running."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()


def _start(command: Sequence[str], **streams: Any) -> "subprocess.Popen[bytes]":
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started ({error.strerror or error})") from error


def serve() -> None:
    """Import everything, then run what standard input asks for until it is closed."""
    import_everything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(asked["arguments"], asked["log"])
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def import_everything() -> None:
    """What a training comes to import sooner or later, at once."""
    import sklearn.datasets  # noqa: F401
    import torch
    from tensorboard.compat.proto import event_pb2  # noqa: F401
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import bpfree.cli
    import bpfree.pictures.confusion
    import bpfree.pictures.noprop
    import bpfree.pictures.numbers  # noqa: F401

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser imports much


def _run(arguments: list[str], log: str) -> NoReturn:
    """In the child: the command, as if it had been started by itself."""
    from bpfree.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(log if number else os.devnull, flags, 0o644), number)
    os.dup2(1, 2)
    sys.argv = ["bpfree", *arguments]
    status = 1
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
