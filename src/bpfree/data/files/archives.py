"""Archives from anywhere, read member by member: nothing is ever written under a name that an archive chose.

Links, devices and members whose names lead elsewhere are passed over. What an archive may unpack to is limited, by what
really comes out and not by what its headers claim.
"""

import errno
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from bpfree.errors import UserError

LARGEST = 4 << 30
MOST_MEMBERS = 200_000
_HEADERS = 1 << 20  # bytes between two files; a longer name is an attack
_BLOCK = 1 << 20
_DAMAGE = (
    *(EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, NotImplementedError),
    *(zlib.error, lzma.LZMAError),
)
_OF_DAMAGE = (None, errno.EINVAL)  # of an OSError: bz2's, and that of a member that begins before the archive does
_ELSEWHERE = re.compile(r"^/|^[a-zA-Z]:|(^|/)\.\.(/|$)|[\\\0]")


class Readable(Protocol):
    """What a member is: something to read from, once."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; nothing at the end."""


def members(archive: Path, largest: int = LARGEST) -> Iterator[tuple[str, Readable]]:
    """Name and content of each file in a .zip, .tar or .tar.gz, in its order; each is to be read before the next.

    Args:
        archive: told apart by how it begins, not by its name.
        largest: bytes that all of it may unpack to.

    Raises:
        UserError: the archive is damaged, encrypted, or unpacks to more; also when the content is read.
    """
    with _told(archive), open(archive, "rb") as file:
        begins = file.read(4)
        file.seek(0)
        if begins == b"PK\x03\x04":
            yield from _zip_members(archive, file, largest)
        elif begins[:2] == b"\x1f\x8b":
            with gzip.open(file) as unzipped:
                yield from _tar_members(archive, unzipped, largest)
        else:
            yield from _tar_members(archive, file, largest)


class _Metered:
    """A stream that ends in a clear error: over its limit, or when what lies below is damaged."""

    def __init__(self, stream: Readable, archive: Path, left: int) -> None:
        self.stream = stream
        self.archive = archive
        self.left = left
        self.soon = left  # how many of those left may be read by now

    def read(self, size: int = -1, /) -> bytes:
        with _told(self.archive):
            block = self.stream.read(size if size >= 0 else self.left + 1)
        self.left -= len(block)
        self.soon -= len(block)
        if min(self.left, self.soon) < 0:
            raise _too_large(self.archive)
        return block


def _zip_members(archive: Path, file: BinaryIO, largest: int) -> Iterator[tuple[str, Readable]]:
    with zipfile.ZipFile(file) as opened:
        for number, info in enumerate(opened.infolist()):
            _count(archive, number)
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = _inside(info.filename)
            if info.is_dir() or kind not in (0, stat.S_IFREG) or name is None:
                continue
            if info.flag_bits & 1:
                raise UserError(f"{archive}: {name} is encrypted, allowed: archives as they were published")
            with opened.open(info) as content:
                metered = _Metered(content, archive, largest)
                yield name, metered
                largest = metered.left


def _tar_members(archive: Path, stream: Readable, largest: int) -> Iterator[tuple[str, Readable]]:
    metered = _Metered(stream, archive, largest)
    metered.soon = _HEADERS
    with tarfile.open(fileobj=metered, mode="r|") as opened:  # type: ignore[call-overload]
        for number, info in enumerate(opened):
            _count(archive, number)
            metered.soon = info.size + _HEADERS
            if info.size > metered.left:  # of what is claimed and not there, tarfile would try every block
                raise _too_large(archive)
            name = _inside(info.name)
            content = opened.extractfile(info) if info.isreg() and not info.issparse() and name else None
            if content is not None and name is not None:
                yield name, _Metered(content, archive, largest)
    metered.soon = metered.left
    while metered.read(_BLOCK):  # to the end, where gzip checks the whole
        pass


def _too_large(archive: Path) -> UserError:
    return UserError(f"{archive}: unpacks to far more than any data set here. Delete it")


def _count(archive: Path, number: int) -> None:
    if number >= MOST_MEMBERS:
        raise UserError(f"{archive}: has more than {MOST_MEMBERS:,} members, which no data set here has")


def _inside(name: str) -> str | None:
    """The name, if it stays within the folder that it is relative to."""
    return None if _ELSEWHERE.search(name) else name.removeprefix("./")


@contextmanager
def _told(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{archive}: corrupt or truncated archive ({reason}). Delete it and fetch it again") from error
