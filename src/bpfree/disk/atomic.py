"""Write files so that a reader sees the old one or the new one, and nothing but regular files is ever replaced."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from bpfree.errors import UserError


def write_error(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be written: which, and why."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        reason = f"the folder {path.parent} is gone: it was deleted or renamed"
    return UserError(f"{path}: cannot be written ({reason})")


def refuse_to_replace(path: Path, *, folder: bool = False) -> None:
    """Refuse to write where something lies that is not ours to replace, such as a link, a device or a pipe.

    Args:
        path: that is to be written. Nothing need be there.
        folder: a folder is to be there, and not a regular file.

    Raises:
        UserError: something else is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from error
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
        found = kinds.get(stat.S_IFMT(mode), "a device, a pipe or a socket")
        wanted = "a folder" if folder else "a regular file"
        raise UserError(f"{path}: is {found}, allowed: {wanted}, or nothing there. Remove it, or write elsewhere")


def make_folder(path: Path) -> Path:
    """Make a folder, unless it is there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be made ({error.strerror or error})") from error
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it.

    Raises:
        UserError: it cannot be written; a file that was there before stays.
    """
    refuse_to_replace(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
        try:
            write(temporary)
            sync(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: it cannot be written; a file that was there before stays.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows does not sync folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
