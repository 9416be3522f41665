"""Paths as users give them, and files that are read: only regular files, so that no read hangs or never ends."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from bpfree.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def user_path(given: str | Path, what: str) -> Path:
    """The path that somebody gave, with `~` replaced by the home folder.

    Args:
        given: the text.
        what: the argument, for errors.

    Raises:
        UserError: the text is empty, holds a NUL, or names a user that does not exist.

    >>> user_path("", "out")
    Traceback (most recent call last):
    ...
    bpfree.errors.UserError: out: found '', allowed: a path. Is a variable of the shell empty?
    """
    text = str(given)
    if isinstance(given, str) and not text.strip():
        raise UserError(f"{what}: found {text!r}, allowed: a path. Is a variable of the shell empty?")
    if "\0" in text:
        raise UserError(f"{what}: found {text!r}, allowed: a path without NUL characters")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}: found {text!r}, but there is no such user. Give the whole path") from error


def refuse_system_folder(path: Path, what: str) -> None:
    """Refuse the root of a disk and the user's home as a folder to write a run into.

    Raises:
        UserError: the path is one of them.
    """
    place = path.absolute()
    try:
        place = place.resolve()
        home = Path.home().resolve()
    except (OSError, RuntimeError):  # a loop of links, or no home
        return
    if place == place.parent or place == home:
        raise UserError(f"{what}: found {path}, allowed: a folder of its own, such as {path / 'run'}")


def refuse_irregular(mode: int, what: str) -> None:
    """Raise UserError unless a file of this mode (`os.stat_result.st_mode`) is a regular file."""
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
        raise UserError(f"{what}: found {kind}, allowed: a regular file")


def check_regular(path: Path, what: str | None = None) -> None:
    """Raise UserError unless the path is a regular file, or a link to one; a path that is not there passes.

    For libraries that open files themselves; where we open one, `open_regular` also holds if the file is exchanged in
    between.

    Args:
        path: of the file.
        what: the file as the user knows it, for errors; default: the path.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, or a path that cannot be: opening it says what is wrong
        return
    refuse_irregular(mode, what or str(path))


def open_regular(path: Path, what: str | None = None, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading bytes. A named pipe is refused and not waited for.

    Args:
        path: of the file.
        what: the file as the user knows it, for errors; default: the path.
        buffering: as of `open`.

    Raises:
        UserError: it is a folder, a named pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    check_regular(path, what)
    file = open(path, "rb", buffering=buffering, opener=_without_waiting)  # noqa: SIM115 -- the caller closes it
    try:
        refuse_irregular(os.fstat(file.fileno()).st_mode, what or str(path))
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
