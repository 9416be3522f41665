"""Paths as users give them, and files opened only if they are regular, since reading a pipe may never end."""

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


def user_path(path: str | Path, what: str) -> Path:
    """Return a path that a user gave, with `~` replaced by the home folder.

    Args:
        path: the text of the user.
        what: name of the argument, for errors.

    Raises:
        UserError: the text is empty, contains a NUL, or names a user that does not exist.

    >>> user_path("", "out")
    Traceback (most recent call last):
    ...
    bpfree.errors.UserError: out: found '', allowed: a path. Is a variable of the shell empty?
    """
    text = str(path)
    if isinstance(path, str) and not text.strip():
        raise UserError(f"{what}: found {text!r}, allowed: a path. Is a variable of the shell empty?")
    if "\0" in text:
        raise UserError(f"{what}: found {text!r}, allowed: a path without NUL characters")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}: found {text!r}, but that user does not exist. Give the whole path") from error


def refuse_system_folder(path: Path, what: str) -> None:
    """Refuse the root of a disk and the user's home as a folder to write a run into.

    Args:
        path: the folder.
        what: name of the argument, for errors.

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
    """Raise UserError unless a mode is that of a regular file.

    Args:
        mode: `os.stat_result.st_mode` of the file.
        what: the file as the user knows it, for errors.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
        raise UserError(f"{what}: found {kind}, allowed: a regular file")


def check_regular(path: Path, what: str | None = None) -> None:
    """Raise UserError unless a path is a regular file, a link to one, or missing.

    This is for libraries that open files themselves. Where we open one, use `open_regular`: it is safe even if the file
    is exchanged between the check and the opening.

    Args:
        path: the file.
        what: the file as the user knows it, for errors; default: the path.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # missing, or a path with a NUL: opening it will say what is wrong
        return
    refuse_irregular(mode, what or str(path))


def open_regular(path: Path, what: str | None = None, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read bytes. A named pipe is refused at once, without waiting for its writer.

    Args:
        path: the file.
        what: the file as the user knows it, for errors; default: the path.
        buffering: as in `open`.

    Returns:
        The open file. The caller closes it.

    Raises:
        UserError: the path is a folder, a named pipe, a socket or a device.
        OSError: the file cannot be opened.
    """
    # Checked twice: before, since opening some devices has an effect; after, since the file may have been exchanged.
    check_regular(path, what)
    file = open(path, "rb", buffering=buffering, opener=_without_waiting)  # noqa: SIM115 -- the caller closes it
    try:
        refuse_irregular(os.fstat(file.fileno()).st_mode, what or str(path))
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open a file so that a named pipe without a writer does not block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
