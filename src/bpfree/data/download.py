"""Find a file in the data directory, else download it there."""

import gzip
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pooch
import requests

from bpfree.errors import UserError

_CONNECT_SECONDS = 15


class Source(NamedTuple):
    """Where the files of a data set are.

    Attributes:
        folders: below the data directory in which they may lie; downloads go to the first.
        mirrors: addresses of folders that hold them, tried in turn.
        hashes: of each file to download, as "md5:...".
        archive: a .tar.gz that holds the files, where they are not to be had one by one.
        members: their paths in it; nothing else is unpacked.
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    hashes: dict[str, str]
    archive: str | None = None
    members: tuple[str, ...] = ()


def data_directory(given: str | Path | None = None) -> Path:
    """The directory for data sets: the one given, else `BPFREE_DATA`, else the user's cache."""
    chosen = given or os.environ.get("BPFREE_DATA")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("bpfree"))


def find(name: str, source: Source, file: str, data_dir: Path) -> Path:
    """Path of a file of data set `name`, gzipped or not; unpacked or downloaded if it is not there.

    A file lands under its final name only when whole, and a download only if it is of the known hash.

    Raises:
        UserError: it is neither there nor to be had, or lies in an archive that is damaged.
    """
    if lying := _lying(source.folders, file, data_dir):
        return lying
    target = data_dir / source.folders[0]
    if source.archive is None:
        return _fetch(name, source, file, target, target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".unpack-") as inside:
            folder = Path(inside)
            archive = _lying(("", *source.folders), source.archive, data_dir)
            archive = archive or _fetch(name, source, source.archive, target, folder)
            for whole in _unpack(archive, source.members, folder):
                if _lying(source.folders, whole.name, data_dir) is None:
                    whole.replace(target / whole.name)
    except OSError as error:
        raise UserError(f"data set '{name}': {target} cannot be written ({error.strerror or error})") from error
    return target / file


def _lying(folders: Sequence[str], file: str, data_dir: Path) -> Path | None:
    """Where the file lies already, gzipped or not."""
    for folder in folders:
        for candidate in (data_dir / folder / file, data_dir / folder / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    return None


def _fetch(name: str, source: Source, file: str, target: Path, folder: Path) -> Path:
    """The file, downloaded to `folder` from the first mirror that has it whole; the error tells of `target`."""
    reasons = []
    for mirror in source.mirrors:
        try:
            return _download(mirror + file, source.hashes[file], folder, file)
        except Exception as error:  # whatever a downloader raises, the next mirror may do better
            reasons.append(f"{mirror} {_reason(error)}")
    raise UserError(
        f"data set '{name}': {file} is not in {target} and could not be downloaded ({'; '.join(reasons)}). Connect to "
        "the network, or put the file there, or name the directory that has it (--data-dir, BPFREE_DATA)"
    )


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """The members as files in `folder`, all of them; whatever else is in the archive stays there.

    Raises:
        UserError: the archive is damaged or lacks a member.
    """
    unpacked: dict[str, Path] = {}
    try:
        with gzip.open(archive) if archive.suffix == ".gz" else open(archive, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    content = tar.extractfile(member) if member.isreg() and name in members else None
                    if content is not None:
                        unpacked[name] = folder / Path(name).name
                        with open(unpacked[name], "wb") as file:
                            shutil.copyfileobj(content, file, 1 << 20)
            while stream.read(1 << 20):  # to the end, where gzip checks the whole
                pass
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{archive}: corrupt or truncated archive ({error}). Delete it and fetch it again") from error
    if lacking := [member for member in members if member not in unpacked]:
        raise UserError(f"{archive}: lacks {', '.join(lacking)}. Delete it and fetch it again")
    return list(unpacked.values())


def _download(url: str, known_hash: str, folder: Path, file: str) -> Path:
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_CONNECT_SECONDS)
    return Path(pooch.retrieve(url, known_hash, fname=file, path=folder, downloader=downloader))


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answers {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "does not answer"
    if isinstance(error, requests.RequestException):
        return "cannot be reached, or broke off"
    if isinstance(error, ValueError):  # pooch's word for a hash that differs
        return "sent another file than the known one"
    return " ".join(str(error).split()) or type(error).__name__
