"""Write files so that a reader sees the old file or the new one. Only regular files are ever replaced."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from bpfree.errors import UserError


def write_error(path: Path, error: Exception) -> UserError:
    """Return the error for a file that cannot be written, with its path and the reason.

    Args:
        path: the file.
        error: what the system or a library raised.
    """
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        reason = f"the folder {path.parent} is gone: it was deleted or renamed"
    return UserError(f"{path}: cannot be written ({reason})")


def refuse_to_replace(path: Path, *, folder: bool = False) -> None:
    """Refuse to write where a link, a device or a pipe lies, which we must not replace.

    Args:
        path: the file that is to be written. It may be missing.
        folder: True if a folder is to be written, and not a regular file.

    Raises:
        UserError: something else is there.
    """
    try:
        # lstat, not stat: a link must be seen as a link. Somebody else may have put it there to have us overwrite a
        # file of the user.
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
    """Make a folder, with its parents, if it does not exist.

    Args:
        path: the folder.

    Returns:
        The path.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be made ({error.strerror or error})") from error
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function fill a temporary file beside the path, then rename that file.

    Args:
        path: the final name. Its folder must exist.
        write: is called with the path of an empty temporary file.

    Raises:
        UserError: the file cannot be written; a file that was there before stays.
    """
    refuse_to_replace(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
        try:
            write(temporary)
            # On the disk before the rename: after a power cut, the final name must not lead to an empty file.
            sync(temporary)
            temporary.chmod(0o644)  # NamedTemporaryFile makes a file that only its owner can read
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and with line ends as they are on every system.

    Args:
        path: the file. Its folder must exist.
        text: the whole content.

    Raises:
        UserError: the file cannot be written; a file that was there before stays.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk.

    Args:
        path: a file or a folder. Windows does not sync folders, so nothing happens for them there.

    Raises:
        OSError: the disk is full or broken.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
