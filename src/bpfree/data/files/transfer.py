"""Download one file over connections that break. It is whole and has the known hash, or it is not there."""

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
_AT_ONCE = 99  # the most processes that may download the same file
_SLOWEST = 1024  # bytes a second, over STALL_SECONDS; a slower server would never finish
_BLOCK = 1 << 18


class WrongFileError(Exception):
    """The error for a download whose hash is not the known one."""


def transfer(url: str, known_hash: str, path: Path) -> None:
    """Download a file. It gets its name when it is whole and has the known hash.

    Until then it grows in `.NAME.part`. A later call continues there, also if this process was killed. Errors that may
    pass, such as a broken connection, are tried again.

    Args:
        url: the address of the file.
        known_hash: the hash of the file as "md5:...".
        path: the final path; its folder must exist.

    Raises:
        requests.RequestException: the server does not have the file, or the connection broke too often.
        WrongFileError: the server sent another file.
    """
    with _claimed(path) as (stream, part):
        try:
            resumed = _size(stream) > 0
            _persist(url, stream)
            if resumed and not is_known(part, known_hash):  # the first part may be of another file: start again
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
        part.replace(path)  # before the lock is released, so that no other process appends to it
    for other in path.parent.glob(f".{escape(path.name)}.*.part"):
        _drop_unclaimed(other)


def _persist(url: str, stream: BinaryIO) -> None:
    """Download the rest of a file, in up to three attempts."""
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
    """Return True if the next attempt may succeed: the server is busy or the connection broke."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 416, 429)
    return isinstance(error, requests.ConnectionError | requests.Timeout)


@contextmanager
def _claimed(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open and lock the first part file that no other process writes to.

    Two processes that write to one file would mix their bytes. A second process downloads to a part file of its own.
    """
    for number in ("", *(f".{n}" for n in range(2, _AT_ONCE + 1))):
        part = path.with_name(f".{path.name}{number}.part")
        with open(part, "ab") as stream:
            if _lock(stream, part):
                yield stream, part
                return
    raise requests.RequestException(f"is asked for it by {_AT_ONCE} processes already")


def _drop_unclaimed(part: Path) -> None:
    """Remove a part file if no process holds its lock: its process was killed."""
    with suppress(OSError), open(part, "r+b") as stream:
        if _lock(stream, part):
            _close_first(stream)
            part.unlink()


def _close_first(stream: BinaryIO) -> None:
    """Close the file on Windows, which neither moves nor removes open files; Windows has no locks, either."""
    if os.name == "nt":
        stream.close()


def _lock(stream: BinaryIO, part: Path) -> bool:
    """Lock an open part file, and return True if this process has it now."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; if two processes write at once, the hash shows it
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network drives have no locks
        return True
    try:
        return os.path.samestat(os.fstat(stream.fileno()), part.stat())  # False if another process renamed it meanwhile
    except OSError:
        return False


def _size(stream: BinaryIO) -> int:
    """Return the number of bytes in an open file."""
    return os.fstat(stream.fileno()).st_size


def _go_on(url: str, stream: BinaryIO) -> None:
    """Append the missing bytes. If the server cannot send only the rest, start again with an empty file."""
    have = _size(stream)
    # Without "identity" a server may zip the file once more, and then bytes on the disk and in the Range would differ.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
        ranges = response.headers.get("Content-Range", "")
        if response.status_code == 416 and ranges == f"bytes */{have}":
            return  # the part file was whole already
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
    """Write the blocks of a response as they come, and raise Timeout if they come too slowly."""
    # read1 returns what has arrived, so the bar moves and nothing is lost if the line breaks. Older urllib3 lacks it.
    read = getattr(response.raw, "read1", response.raw.read)
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with bar(Path(response.url).name, *figures, total=total, done=_size(stream)) as advance:
        since, got = time.monotonic(), 0
        for block in iter(lambda: _read(read), b""):
            stream.write(block)
            stream.flush()
            got += len(block)
            advance(len(block))
            if _size(stream) > LARGEST:
                raise requests.RequestException("sends more bytes than any known file has")
            if (seconds := time.monotonic() - since) > STALL_SECONDS:
                if got < _SLOWEST * seconds:
                    raise requests.Timeout("too slow")
                since, got = time.monotonic(), 0


def _read(read: Any) -> bytes:
    """Return the next block of a response as it is sent, and raise errors of urllib3 as those of requests."""
    try:
        return bytes(read(_BLOCK, decode_content=False))
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.Timeout(str(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise requests.ConnectionError(str(error)) from error
