"""Read archives member by member. Archives are not trusted: no file is written under a name that an archive chose.

Links, devices and members whose names lead out of the folder are passed over. The unpacked size is limited, and the
bytes that really come out are counted, because a header may claim any size.
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

LARGEST = 4 << 30  # bytes that an archive may unpack to
MOST_MEMBERS = 200_000
_HEADERS = 1 << 20  # bytes that may lie between two files of a tar; a longer header is an attack
_BLOCK = 1 << 20
_DAMAGE = (
    *(EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, NotImplementedError),
    *(zlib.error, lzma.LZMAError),
)
# Error numbers of an OSError that mean damage: bz2 gives none; a member that begins before the archive gives EINVAL.
_DAMAGE_NUMBERS = (None, errno.EINVAL)
_ELSEWHERE = re.compile(r"^/|^[a-zA-Z]:|(^|/)\.\.(/|$)|[\\\0]")


class Readable(Protocol):
    """A member of an archive: a stream that can be read once."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`; b"" at the end."""


def members(archive: Path, largest: int = LARGEST) -> Iterator[tuple[str, Readable]]:
    """Iterate over the name and content of each file in a .zip, .tar or .tar.gz, in the order of the archive.

    Args:
        archive: the path. Its first bytes decide the format, not its name.
        largest: the number of bytes that the whole archive may unpack to.

    Returns:
        An iterator. Each content must be read before the next member is asked for, because a tar is one stream.

    Raises:
        UserError: the archive is damaged, encrypted, or unpacks to more bytes. Reading a content raises it, too.
    """
    with _damage_as_user_error(archive), open(archive, "rb") as file:
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
    """A stream that counts its bytes. It raises UserError above its limit, and if the archive is damaged.

    Args:
        stream: the stream below.
        archive: the path, for errors.
        left: the number of bytes that may still be read.
    """

    def __init__(self, stream: Readable, archive: Path, left: int) -> None:
        self.stream = stream
        self.archive = archive
        self.left = left
        self.soon = left  # the part of `left` that may be read before the caller allows more

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`, and count them."""
        with _damage_as_user_error(self.archive):
            # One byte over the limit is enough to notice it, and read(-1) of a zip bomb would fill the memory.
            block = self.stream.read(size if size >= 0 else self.left + 1)
        self.left -= len(block)
        self.soon -= len(block)
        if min(self.left, self.soon) < 0:
            raise _too_large(self.archive)
        return block


def _zip_members(archive: Path, file: BinaryIO, largest: int) -> Iterator[tuple[str, Readable]]:
    """Iterate over the regular files of a .zip; the bytes of all of them together are limited."""
    with zipfile.ZipFile(file) as opened:
        for number, info in enumerate(opened.infolist()):
            _count(archive, number)
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix attributes
            name = inside(info.filename)
            if info.is_dir() or kind not in (0, stat.S_IFREG) or name is None:
                continue
            if info.flag_bits & 1:
                raise UserError(f"{archive}: {name} is encrypted, allowed: archives as they were published")
            with opened.open(info) as content:
                metered = _Metered(content, archive, largest)
                yield name, metered
                largest = metered.left


def _tar_members(archive: Path, stream: Readable, largest: int) -> Iterator[tuple[str, Readable]]:
    """Iterate over the regular files of a .tar that is read as a stream, so that nothing is unpacked twice."""
    metered = _Metered(stream, archive, largest)
    metered.soon = _HEADERS
    with tarfile.open(fileobj=metered, mode="r|") as opened:  # type: ignore[call-overload]
        for number, info in enumerate(opened):
            _count(archive, number)
            metered.soon = info.size + _HEADERS
            # Checked before tarfile looks for the content: it would read block after block of a size that is a lie.
            if info.size > metered.left:
                raise _too_large(archive)
            name = inside(info.name)
            content = opened.extractfile(info) if info.isreg() and not info.issparse() and name else None
            if content is not None and name is not None:
                yield name, _Metered(content, archive, largest)
    # gzip compares its checksum at the end of the stream alone, which tarfile does not reach by itself.
    metered.soon = metered.left
    while metered.read(_BLOCK):
        pass


def _too_large(archive: Path) -> UserError:
    return UserError(f"{archive}: unpacks to far more than any data set here. Delete it")


def _count(archive: Path, number: int) -> None:
    """Raise UserError for an archive with very many members: each costs time, even if it is empty."""
    if number >= MOST_MEMBERS:
        raise UserError(f"{archive}: has more than {MOST_MEMBERS:,} members, which no data set here has")


def inside(name: str) -> str | None:
    """Return the name of a member if it stays within its folder; None if it leads elsewhere.

    Example:
        >>> inside("./a/b.png"), inside("a/../../b.png"), inside("/etc/passwd")
        ('a/b.png', None, None)
    """
    return None if _ELSEWHERE.search(name) else name.removeprefix("./")


@contextmanager
def _damage_as_user_error(archive: Path) -> Iterator[None]:
    """Turn what the decompressors raise for damaged files into a UserError; other errors of the system pass."""
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _DAMAGE_NUMBERS:
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{archive}: corrupt or truncated archive ({reason}). Delete it and fetch it again") from error
