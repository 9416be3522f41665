"""Read the IDX format of MNIST.

A file is big-endian. It has two bytes 0, a byte for the type, a byte for the number of dimensions, the length of each
dimension as int32, then the values in row-major order.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bpfree.errors import UserError

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_LARGEST = 1 << 31  # bytes of values; memory is not taken for a header that claims more
_RANKS = range(1, 9)


def read_idx(path: Path) -> npt.NDArray[np.generic]:
    """Return the values of an IDX file, gzipped or not, in the byte order of this machine.

    Args:
        path: of the file.

    Raises:
        UserError: the file is truncated, corrupt, or not an IDX file.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] not in _RANKS:
                raise UserError(f"{path}: not an IDX file: it begins with {magic.hex(' ') or 'nothing'}")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise UserError(f"{path}: truncated: it ends within its header. Fetch it again")
            shape = struct.unpack(f">{magic[3]}i", sizes)
            return _read_values(path, file, np.dtype(_TYPES[magic[2]]), shape)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: corrupt or truncated gzip file ({error}). Delete it and fetch it again") from error


def _read_values(path: Path, file: object, dtype: np.dtype, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """Return the values behind the header, or raise UserError if there are more or fewer than it claims."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    if min(shape) < 0 or size > _LARGEST:
        raise UserError(f"{path}: corrupt: its header claims the shape {list(shape)}")
    # One byte more than the header claims, so that a file that is too long is noticed, too.
    values = file.read(size + 1)  # type: ignore[attr-defined]
    if len(values) != size:
        count = f"{len(values)}" if len(values) < size else f"more than {size}"
        raise UserError(
            f"{path}: truncated or corrupt: {count} bytes of values, its header says {size}. Fetch it again"
        )
    # `astype` copies: torch takes no big-endian numbers, and warns about the read-only memory of `values`.
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))
