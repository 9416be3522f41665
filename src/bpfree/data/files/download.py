"""Find a file of a data set in the data directory, or download it to there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import pooch
from filelock import FileLock

from bpfree.data.files.abandoned import remove_abandoned
from bpfree.data.files.archives import members
from bpfree.disk.paths import user_path
from bpfree.errors import UserError

_UNPACKING = ".unpack-"
# Not a global variable: a check in one thread must not forbid the downloads of another thread.
_offline = ContextVar("_offline", default=False)


class Source(NamedTuple):
    """The places of a data set's files, on the disk and in the network.

    Attributes:
        folders: folders below the data directory that may hold the files; downloads go to the first.
        mirrors: addresses of folders that hold the files, tried in turn.
        hashes: for each file to download, and for others if known, its hash as "md5:...".
        archive: a .zip, .tar or .tar.gz with the files, if they are not published one by one; else None.
        members: the paths of the files in the archive; nothing else is unpacked.
        contents: hashes of the contents of .gz files, by their names without ".gz". People zip files anew, which
            changes the hash of the .gz file only.
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    hashes: dict[str, str]
    archive: str | None = None
    members: tuple[str, ...] = ()
    contents: dict[str, str] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that a reader needs."""
        return tuple(Path(member).name for member in self.members) or tuple(self.hashes)


def data_directory(given: str | Path | None = None) -> Path:
    """Return the directory for data sets: `given`, or the environment variable BPFREE_DATA, or the user's cache.

    Args:
        given: the user's choice; None for the default.

    Raises:
        UserError: see `bpfree.disk.paths.user_path`.
    """
    chosen = given or os.environ.get("BPFREE_DATA")
    return user_path(chosen, "data.dir") if chosen else Path(pooch.os_cache("bpfree"))


@contextmanager
def offline() -> Iterator[None]:
    """Forbid downloads while the block runs: a file that is not on the disk is then a UserError."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


def is_here(source: Source, data_dir: Path) -> bool:
    """Return True if all files of a source, or the archive that contains them, are in the data directory."""
    return _packed(source, data_dir) is not None or all(
        existing_file(source.folders, file, data_dir) for file in source.files
    )


def find(name: str, source: Source, file: str, data_dir: Path) -> Path:
    """Return the path of a file, gzipped or not. A file that is not there is unpacked or downloaded.

    A file gets its final name only when it is whole, and a download only if it has the known hash.

    Args:
        name: of the data set, for errors.
        source: the places of the data set's files.
        file: the name of the file.
        data_dir: the directory of all data sets.

    Raises:
        UserError: the file is not there and cannot be downloaded, or its archive is damaged.
    """
    if path := existing_file(source.folders, file, data_dir):
        return path
    lock = data_dir / f".{source.folders[0].replace('/', '-')}.lock"
    with nullcontext() if _offline.get() else _alone(lock):
        # Asked again: another process may have brought it in the meantime.
        return existing_file(source.folders, file, data_dir) or _bring(name, source, file, data_dir)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process brings the same data set. On a disk without locks nothing is waited for."""
    held = FileLock(lock)
    with suppress(OSError, NotImplementedError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _bring(name: str, source: Source, file: str, data_dir: Path) -> Path:
    """Download a file, or the archive that contains it, which is then unpacked."""
    target = data_dir / source.folders[0]
    if source.archive is None:
        return _fetch(name, source, file, target)
    given = _packed(source, data_dir)
    archive = given or _fetch(name, source, source.archive, target)
    try:
        _unpack(archive, source, target, data_dir)
    except OSError as error:
        raise _unwritable(name, target, error) from error
    if given is None:  # an archive that the user put there stays
        archive.unlink()
    return target / file


def existing_file(folders: Sequence[str], file: str, data_dir: Path) -> Path | None:
    """Return the path of a file that is already in one of the folders, gzipped or not; None if it is in none."""
    for folder in folders:
        for candidate in (data_dir / folder / file, data_dir / folder / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    return None


def _packed(source: Source, data_dir: Path) -> Path | None:
    """Return the path of the source's archive, if there is one; people also put it into the data directory itself."""
    return existing_file(("", *source.folders), source.archive, data_dir) if source.archive else None


def _unwritable(name: str, target: Path, error: OSError) -> UserError:
    return UserError(f"data set '{name}': {target} cannot be written ({error.strerror or error})")


def _fetch(name: str, source: Source, file: str, target: Path) -> Path:
    """Download a file from the first mirror that has it whole, and return its path."""
    if _offline.get():
        raise UserError(f"data set '{name}': {file} is not in {target}. `bpfree data get {name}` downloads it")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(name, target, error) from error
    from bpfree.data.files.transfer import (
        transfer,  # it imports requests, which takes time, and most runs need no download
    )

    reasons = []
    for mirror in source.mirrors:
        try:
            transfer(mirror + file, source.hashes[file], target / file)
            return target / file
        except Exception as error:  # whatever goes wrong with one mirror, the next one may work
            reasons.append(f"{mirror} {_reason(error)}")
    raise UserError(
        f"data set '{name}': {file} is not in {target} and could not be downloaded ({'; '.join(reasons)}). Connect to "
        "the network, or put the file there, or name the directory that has it (--data-dir, BPFREE_DATA)"
    )


def _unpack(archive: Path, source: Source, target: Path, data_dir: Path) -> None:
    """Unpack the members into `target`, except those that exist already. Nothing else of the archive is unpacked.

    Raises:
        UserError: the archive is damaged or lacks a member.
        OSError: the target cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target, f"{_UNPACKING}*")
    with tempfile.TemporaryDirectory(dir=target, prefix=_UNPACKING) as inside:
        unpacked: dict[str, Path] = {}
        for name, content in members(archive):
            if name in source.members:  # only names from our table become paths, never names that the archive chose
                unpacked[name] = Path(inside) / Path(name).name
                with open(unpacked[name], "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
        if lacking := [member for member in source.members if member not in unpacked]:
            raise UserError(f"{archive}: lacks {', '.join(lacking)}. Delete it and fetch it again")
        # After the whole archive was read: the checksum of a .gz comes at its end, and may show that files are damaged.
        for whole in unpacked.values():
            # Files that the user put there, or that another process unpacked meanwhile, stay.
            if existing_file(source.folders, whole.name, data_dir) is None:
                whole.replace(target / whole.name)


def _reason(error: Exception) -> str:
    """Return in a few words why a mirror failed."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answers {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "does not answer, or too slowly"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached, or broke off"
    return " ".join(str(error).split()) or type(error).__name__
