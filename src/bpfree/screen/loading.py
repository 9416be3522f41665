"""A word on the terminal while large packages are imported, which takes seconds. It imports nothing large itself."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bpfree.screen.first import is_first

_is_shown = False


def is_script() -> bool:
    """Return True if Python runs the script `bpfree` that pip installs, and not a program that imports bpfree."""
    name = sys.argv[0] if sys.argv else ""
    # Not with pathlib, which takes a while to import.
    return os.path.basename(name) in ("bpfree", "bpfree.exe", "bpfree-script.py")  # noqa: PTH119


def begin(what: str) -> None:
    """Show "loading ..." on standard error if that is a terminal. Ctrl-C then ends the program with one word.

    Args:
        what: the package that is imported.
    """
    global _is_shown
    # Another handler stays: a shell lets background programs ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # Python allows signal handlers in the main thread only
            signal.signal(signal.SIGINT, _interrupted)
    # While the shell completes a command, its line is on the terminal.
    if sys.stderr is not None and sys.stderr.isatty() and is_first() and "_BPFREE_COMPLETE" not in os.environ:
        _is_shown = True
        sys.stderr.write(f"loading {what} ...")
        sys.stderr.flush()


def end() -> None:
    """Remove what `begin` showed; do nothing if it shows nothing."""
    global _is_shown
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _is_shown:
        _is_shown = False
        # Spaces, because old Windows terminals do not know the codes that erase a line.
        sys.stderr.write(f"\r{' ' * 40}\r")
        sys.stderr.flush()


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Show "loading ..." while the block imports a package.

    Args:
        what: the package.
    """
    begin(what)
    try:
        yield
    finally:
        end()


def _interrupted(_number: int, _frame: Any) -> None:
    """End the program: nothing was begun yet, so there is nothing to keep, and a traceback would help nobody."""
    end()
    if sys.stderr is not None and is_first():
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
    os._exit(130)  # 128 + SIGINT, as shells report it
