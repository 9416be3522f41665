"""One file from one address, over lines that break: whole and of the known hash, or not there."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from bpfree.data.files.bars import bar
from bpfree.data.files.hashes import is_known

CONNECT_SECONDS = 15.0
STALL_SECONDS = 30.0
WAITS = (0.5, 2.0)  # before a second and a third attempt
LARGEST = 4 << 30
_AT_ONCE = 99  # processes that download the same file
_SLOWEST = 1024  # bytes a second, over STALL_SECONDS; whoever is slower only keeps the line
_BLOCK = 1 << 18


class WrongFileError(Exception):
    """What came is not the known file."""


def transfer(url: str, known_hash: str, path: Path) -> None:
    """Download a file, which gets its name when it is whole and of the known hash.

    Until then it grows in `.NAME.part`, and a later call goes on there, also after this one was killed. What may pass
    is tried again.

    Args:
        url: of the file.
        known_hash: as "md5:...".
        path: where it goes; the folder exists.

    Raises:
        requests.RequestException: it is not to be had, or broke off again and again.
        WrongFileError: it is another one.
    """
    with _claimed(path) as (stream, part):
        try:
            resumed = _size(stream) > 0
            _persist(url, stream)
            if resumed and not is_known(part, known_hash):  # what was there may have been of another file
                stream.truncate(0)
                _persist(url, stream)
            if not is_known(part, known_hash):
                stream.truncate(0)
                raise WrongFileError("sent another file than the known one")
        except BaseException:
            if _size(stream) == 0:
                _close_first(stream)
                part.unlink(missing_ok=True)
            raise
        _close_first(stream)
        part.replace(path)  # while it is claimed still, so that nobody else appends to it
    for other in path.parent.glob(f".{escape(path.name)}.*.part"):
        _drop_unclaimed(other)


def _persist(url: str, stream: BinaryIO) -> None:
    for wait in WAITS:
        try:
            _go_on(url, stream)
            return
        except requests.RequestException as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    _go_on(url, stream)


def _may_pass(error: requests.RequestException) -> bool:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 416, 429)
    return isinstance(error, requests.ConnectionError | requests.Timeout)


@contextmanager
def _claimed(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """The first part file that nobody else fills at the moment, for this process alone."""
    for number in ("", *(f".{n}" for n in range(2, _AT_ONCE + 1))):
        part = path.with_name(f".{path.name}{number}.part")
        with open(part, "ab") as stream:
            if _lock(stream, part):
                yield stream, part
                return
    raise requests.RequestException(f"is asked for it by {_AT_ONCE} processes already")


def _drop_unclaimed(part: Path) -> None:
    """A part file of a process that was killed while another one downloaded the same."""
    with suppress(OSError), open(part, "r+b") as stream:
        if _lock(stream, part):
            _close_first(stream)
            part.unlink()


def _close_first(stream: BinaryIO) -> None:
    """Where no file can be moved or removed that is open; there are no locks there either."""
    if os.name == "nt":
        stream.close()


def _lock(stream: BinaryIO, part: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows, where the hash alone tells that two wrote at once
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # nor on some network drives
        return True
    try:
        return os.path.samestat(os.fstat(stream.fileno()), part.stat())  # and not moved away since it was opened
    except OSError:
        return False


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _go_on(url: str, stream: BinaryIO) -> None:
    """Append what is missing; begin anew where a server cannot send the rest alone."""
    have = _size(stream)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
        ranges = response.headers.get("Content-Range", "")
        if response.status_code == 416 and ranges == f"bytes */{have}":
            return  # it was whole
        if response.status_code == 206 and not ranges.startswith(f"bytes {have}-"):
            raise requests.ConnectionError(f"{url}: sent another part than was asked for")
        if response.status_code in (200, 416):
            stream.truncate(0)
            have = 0
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        _append(response, stream, total)
        if total is not None and _size(stream) != total:
            raise requests.ConnectionError(f"{url}: broke off")


def _append(response: requests.Response, stream: BinaryIO, total: int | None) -> None:
    read = getattr(response.raw, "read1", response.raw.read)  # of older versions of urllib3, which have none
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with bar(Path(response.url).name, *figures, total=total, done=_size(stream)) as told:
        since, got = time.monotonic(), 0
        for block in iter(lambda: _read(read), b""):
            stream.write(block)
            stream.flush()
            got += len(block)
            told(len(block))
            if _size(stream) > LARGEST:
                raise requests.RequestException("sends more than any file that is known here")
            if (seconds := time.monotonic() - since) > STALL_SECONDS:
                if got < _SLOWEST * seconds:
                    raise requests.Timeout("too slow")
                since, got = time.monotonic(), 0


def _read(read: Any) -> bytes:
    """The next block as it comes over the line, not unzipped, with errors as requests calls them."""
    try:
        return bytes(read(_BLOCK, decode_content=False))
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.Timeout(str(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise requests.ConnectionError(str(error)) from error
