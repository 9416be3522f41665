"""Find a file in the data directory, else download it there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import pooch

from bpfree.data.files.archives import members
from bpfree.data.files.leftovers import drop_abandoned
from bpfree.disk.paths import user_path
from bpfree.errors import UserError

_UNPACKING = ".unpack-"
_offline = ContextVar("_offline", default=False)


class Source(NamedTuple):
    """Where the files of a data set are.

    Attributes:
        folders: below the data directory in which they may lie; downloads go to the first.
        mirrors: addresses of folders that hold them, tried in turn.
        hashes: of each file to download, and of others where they are known, as "md5:...".
        archive: a .zip, .tar or .tar.gz that holds the files, where they are not to be had one by one.
        members: their paths in it; nothing else is unpacked.
        contents: hashes of what is in the .gz files, by their names without it; people zip anew.
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    hashes: dict[str, str]
    archive: str | None = None
    members: tuple[str, ...] = ()
    contents: dict[str, str] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that a reader needs."""
        return tuple(Path(member).name for member in self.members) or tuple(self.hashes)


def data_directory(given: str | Path | None = None) -> Path:
    """The directory for data sets: the one given, else `BPFREE_DATA`, else the user's cache.

    Raises:
        UserError: see `bpfree.disk.paths.user_path`.
    """
    chosen = given or os.environ.get("BPFREE_DATA")
    return user_path(chosen, "data.dir") if chosen else Path(pooch.os_cache("bpfree"))


@contextmanager
def offline() -> Iterator[None]:
    """Within it, nothing is downloaded: what is not there is an error."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


def is_here(source: Source, data_dir: Path) -> bool:
    """Whether every file of it, or the archive that has them, is in the data directory."""
    return _packed(source, data_dir) is not None or all(lying(source.folders, file, data_dir) for file in source.files)


def find(name: str, source: Source, file: str, data_dir: Path) -> Path:
    """Path of a file of data set `name`, gzipped or not; unpacked or downloaded if it is not there.

    A file lands under its final name only when whole, and a download only if it is of the known hash.

    Raises:
        UserError: it is neither there nor to be had, or lies in an archive that is damaged.
    """
    if found := lying(source.folders, file, data_dir):
        return found
    target = data_dir / source.folders[0]
    if source.archive is None:
        return _fetch(name, source, file, target)
    given = _packed(source, data_dir)
    archive = given or _fetch(name, source, source.archive, target)
    try:
        _unpack(archive, source, target, data_dir)
    except OSError as error:
        raise _unwritable(name, target, error) from error
    if given is None:
        archive.unlink()
    return target / file


def lying(folders: Sequence[str], file: str, data_dir: Path) -> Path | None:
    """Where the file lies already, gzipped or not."""
    for folder in folders:
        for candidate in (data_dir / folder / file, data_dir / folder / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    return None


def _packed(source: Source, data_dir: Path) -> Path | None:
    return lying(("", *source.folders), source.archive, data_dir) if source.archive else None


def _unwritable(name: str, target: Path, error: OSError) -> UserError:
    return UserError(f"data set '{name}': {target} cannot be written ({error.strerror or error})")


def _fetch(name: str, source: Source, file: str, target: Path) -> Path:
    """The file, downloaded from the first mirror that has it whole."""
    if _offline.get():
        raise UserError(f"data set '{name}': {file} is not in {target}. `bpfree data get {name}` downloads it")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(name, target, error) from error
    from bpfree.data.files.transfer import transfer  # with requests, which most runs do without

    reasons = []
    for mirror in source.mirrors:
        try:
            transfer(mirror + file, source.hashes[file], target / file)
            return target / file
        except Exception as error:  # whatever a downloader raises, the next mirror may do better
            reasons.append(f"{mirror} {_reason(error)}")
    raise UserError(
        f"data set '{name}': {file} is not in {target} and could not be downloaded ({'; '.join(reasons)}). Connect to "
        "the network, or put the file there, or name the directory that has it (--data-dir, BPFREE_DATA)"
    )


def _unpack(archive: Path, source: Source, target: Path, data_dir: Path) -> None:
    """The members as files in `target`, where they do not lie already; whatever else is in the archive stays there.

    Raises:
        UserError: the archive is damaged or lacks a member.
        OSError: the target cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    drop_abandoned(target, f"{_UNPACKING}*")
    with tempfile.TemporaryDirectory(dir=target, prefix=_UNPACKING) as inside:
        unpacked: dict[str, Path] = {}
        for name, content in members(archive):
            if name in source.members:
                unpacked[name] = Path(inside) / Path(name).name
                with open(unpacked[name], "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
        if lacking := [member for member in source.members if member not in unpacked]:
            raise UserError(f"{archive}: lacks {', '.join(lacking)}. Delete it and fetch it again")
        for whole in unpacked.values():
            if lying(source.folders, whole.name, data_dir) is None:
                whole.replace(target / whole.name)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answers {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "does not answer, or too slowly"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached, or broke off"
    return " ".join(str(error).split()) or type(error).__name__
