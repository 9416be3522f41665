"""Find the samples of a tar without unpacking it: each member lies at an offset, from which it can be read alone.

The package webdataset says which members form a sample: neighbours whose names are equal up to the first dot. Its
decoders are not used, because they unpickle. Tars are not trusted: no file is written, headers have a limited size, and
links, devices and sparse members are passed over.
"""

import re
import tarfile
from collections.abc import Iterator
from io import SEEK_SET, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bpfree.data.files.archives import inside
from bpfree.data.shards.files import library
from bpfree.disk.paths import open_regular
from bpfree.errors import UserError

EXTRA = "webdataset"
_HEADERS = 1 << 20  # bytes of a header; a longer one is an attack
_BLOCK = tarfile.BLOCKSIZE
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}  # by the first two bytes
_ABOUT = re.compile(r"__[^/]*__($|/)")  # members that describe the data set, as the package passes them over
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, OSError)


class Member(NamedTuple):
    """The place of a member's content in its tar.

    Attributes:
        place: the offset of the first byte.
        size: the number of bytes.
    """

    place: int
    size: int


class TarSample(NamedTuple):
    """A sample of a tar.

    Attributes:
        key: the name that its members share.
        members: by the end of the name behind the first dot, in small letters, such as "jpg" or "cls".
    """

    key: str
    members: dict[str, Member]


class OpenTar:
    """A tar whose samples are found one after another.

    Args:
        path: of the tar.

    Raises:
        UserError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error

    def __enter__(self) -> "OpenTar":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, member: Member) -> bytes:
        """Return the content of a member."""
        self._file.seek(member.place)
        return self._file.read(member.size)

    def samples(self) -> Iterator[TarSample]:
        """Iterate over the samples, in the order of the tar.

        Raises:
            UserError: the tar is damaged, truncated or compressed, a name leads out of it, or a sample has a member
                twice.
        """
        group = library("webdataset.tariterators", EXTRA).group_by_keys
        try:
            for sample in group(self._members()):
                yield TarSample(sample.pop("__key__"), {k: m for k, m in sample.items() if isinstance(m, Member)})
        except UserError:
            raise
        except _DAMAGE as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise UserError(f"{self.path}: corrupt or truncated tar ({reason}). Make it again") from error

    def _members(self) -> Iterator[dict[str, Any]]:
        """Iterate over the regular files, in the form that the package takes."""
        if packed := _PACKED.get(self._file.read(2)):
            raise UserError(
                f"{self.path}: found a file that is compressed by {packed}, allowed: plain tars, whose samples can be "
                "read from where they lie. Unpack it; images in it are compressed already"
            )
        self._file.seek(0)
        end = 0
        with tarfile.open(fileobj=_Headers(self._file, self.path), mode="r:") as opened:
            while (info := opened.next()) is not None:
                opened.members.clear()  # type: ignore[attr-defined]  # tarfile keeps a list of all
                # A negative size would lead back, and around for ever.
                if info.size < 0 or info.offset < end:
                    raise tarfile.ReadError("a size below 0")
                end = info.offset_data + info.size
                if not info.isreg() or info.issparse():
                    continue
                if (name := inside(info.name)) is None:
                    raise UserError(f"{self.path}: found the name {info.name!r:.200}, allowed: names within the tar")
                if not _ABOUT.match(name):
                    yield {"fname": name, "data": Member(info.offset_data, info.size), "__url__": ""}
            # tarfile takes a damaged header for the end. A whole tar ends with blocks of zeros.
            self._file.seek(opened.offset)
            if self._file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end, and no header at byte {opened.offset:,}")


class _Headers(RawIOBase):
    """A file for tarfile, which reads headers alone. A header may claim any size, so the size of a read is limited."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _HEADERS:
            raise UserError(f"{self._path}: found a header of {size:,} bytes, allowed: at most {_HEADERS:,}")
        return self._file.read(size)

    def seek(self, place: int, whence: int = SEEK_SET, /) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


def name_at(file_start: bytes) -> str:
    """Return the name in the header block of a member, for errors; "" if it is not one.

    Args:
        file_start: the block of 512 bytes before the content.
    """
    try:
        return tarfile.TarInfo.frombuf(file_start, tarfile.ENCODING, "surrogateescape").name
    except tarfile.TarError:
        return ""
