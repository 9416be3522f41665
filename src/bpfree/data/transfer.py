"""One file from one address, over lines that break: a downloader for pooch, which checks the hash of what came."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from bpfree.data.bars import bar

CONNECT_SECONDS = 15.0
STALL_SECONDS = 30.0
WAITS = (0.5, 2.0)  # before a second and a third attempt
LARGEST = 4 << 30
_SLOWEST = 1024  # bytes a second, over STALL_SECONDS; whoever is slower only keeps the line
_BLOCK = 1 << 18


class Transfer:
    """Downloads to `part` and goes on there if it was begun before; what may pass is tried again.

    Attributes:
        resumed: whether part of the file came from an earlier attempt, which may have been of another file.

    Args:
        part: where a download grows; what is in it counts for nothing until its hash was checked.
    """

    def __init__(self, part: Path) -> None:
        self.part = part
        self.resumed = False

    def __call__(self, url: str, output_file: str | Path, pooch: Any = None, check_only: bool = False) -> None:
        """Fill `output_file`, as pooch asks for it.

        Raises:
            requests.RequestException: it is not to be had, or broke off again and again.
        """
        with _claimed(self.part, Path(output_file)) as (stream, path):
            self.resumed = _size(stream) > 0
            try:
                self._persist(url, stream)
            except BaseException:
                if _size(stream) == 0:
                    path.unlink(missing_ok=True)
                raise
            if path != Path(output_file):
                os.replace(path, output_file)  # while it is claimed still, so that nobody else appends to it

    def _persist(self, url: str, stream: BinaryIO) -> None:
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
def _claimed(part: Path, otherwise: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """The part file, for this process alone; another one if somebody downloads to it at the moment."""
    with open(part, "ab") as stream:
        if _lock(stream, part):
            yield stream, part
            return
    with open(otherwise, "wb") as stream:
        yield stream, otherwise


def _lock(stream: BinaryIO, part: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows, where the hash alone tells that two wrote at once
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
