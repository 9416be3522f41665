"""Find a file in the data directory, else download it there."""

import logging
import os
import sys
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
        hashes: of each file, as "md5:...".
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    hashes: dict[str, str]


def data_directory(given: str | Path | None = None) -> Path:
    """The directory for data sets: the one given, else `BPFREE_DATA`, else the user's cache."""
    chosen = given or os.environ.get("BPFREE_DATA")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("bpfree"))


def find(name: str, source: Source, file: str, data_dir: Path) -> Path:
    """Path of a file of data set `name`, gzipped or not; downloaded if it is not there.

    A download lands under its final name only when whole and of the known hash.

    Raises:
        UserError: it is neither there nor to be had.
    """
    for folder in source.folders:
        for candidate in (data_dir / folder / file, data_dir / folder / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    target = data_dir / source.folders[0]
    reasons = []
    for mirror in source.mirrors:
        try:
            return _download(mirror + file, source.hashes[file], target, file)
        except Exception as error:  # whatever a downloader raises, the next mirror may do better
            reasons.append(f"{mirror} {_reason(error)}")
    raise UserError(
        f"data set '{name}': {file} is not in {target} and could not be downloaded ({'; '.join(reasons)}). Connect to "
        "the network, or put the file there, or name the directory that has it (--data-dir, BPFREE_DATA)"
    )


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
