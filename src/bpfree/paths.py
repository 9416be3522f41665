"""Paths as people give them: `~` is the home folder, and what cannot be a path is refused in one line."""

from pathlib import Path

from bpfree.errors import UserError


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
