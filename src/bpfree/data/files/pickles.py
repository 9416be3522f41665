"""Read Python pickles with a loader that cannot execute code.

A pickle is a program that may call any function. Here it may call three, and each is replaced by a harmless class or
function of this module: numpy's array and its dtype, both for bytes only, and the encoding of text, for one encoding.
Before loading, every instruction is checked. An unknown instruction is an error, and so is one that asks for much more
memory than the file is long.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfree.disk.paths import open_regular
from bpfree.errors import UserError

_LARGEST = 256 << 20
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST
    APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT
    MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_KNOWN = frozenset(_INSTRUCTIONS.split())
# Exceptions of the loader for damaged files; they have no common base class.
_BROKEN = (
    *(pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, MemoryError),
    OverflowError,
)


def read_pickle(path: Path) -> Any:
    """Return the dict in a pickle, which may hold lists, text, numbers and numpy arrays of bytes.

    Args:
        path: of the file. Text that Python 2 wrote comes as bytes, except for the keys.

    Raises:
        UserError: the file is damaged, or would do anything except build those values.
    """
    with open_regular(path) as file:
        # One byte more than allowed is enough to see that a file is too long, and a huge file never fills the memory.
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UserError(f"{path}: found {path.stat().st_size:,} bytes, allowed: at most {_LARGEST:,} for a pickle")
    try:
        _check_instructions(content)
        # Python 2 wrote pixels as text. The default encoding, ASCII, would refuse every byte above 127.
        return _plain(_Loader(io.BytesIO(content), encoding="bytes").load())
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: not a pickle that bpfree reads ({reason}), allowed: dicts, lists, text, numbers and arrays of "
            "bytes alone, since others may execute code. Delete it and fetch it again"
        ) from error


def _check_instructions(content: bytes) -> None:
    """Raise UnpicklingError for an instruction that is not needed for plain values, or that fills the memory."""
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name not in _KNOWN:
            raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
        # The loader makes its table of memos as long as the largest index, so that one small instruction takes
        # gigabytes.
        if instruction.name.endswith("PUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("it asks for far more memory than it needs")


class _Dtype:
    """A replacement for numpy.dtype, for bytes only."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it has an array of {name!r}")

    def __setstate__(self, state: object) -> None:
        """Ignore the state: bytes have no byte order."""


class _Array:
    """A replacement for a numpy array that is being rebuilt; `values` is the array."""

    values: npt.NDArray[np.uint8] | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has an array that is not of bytes")
        flat = np.frombuffer(content, np.uint8)
        # `reshape` raises ValueError if the file claims a shape with another number of values.
        self.values = flat.reshape(shape, order="F" if column_major else "C")


def _encode(text: str, encoding: str) -> bytes:
    """A replacement for _codecs.encode, with which Python 3 writes bytes that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    # numpy 2 renamed numpy.core to numpy._core; a pickle names the module of the numpy that wrote it.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Loader(pickle.Unpickler):
    """An Unpickler that knows the names in `_ALLOWED` and no others, so it imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a name; raise UnpicklingError for a name that is not allowed."""
        try:
            # The method of the base class must not be called: it imports the module, and that executes the module's
            # code.
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None


def _plain(value: Any) -> Any:
    """Return the dict with real arrays in place of `_Array`, at its first level, where the files of CIFAR have them."""
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"it holds {type(value).__name__}, not a dict")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: inner.values if isinstance(inner, _Array) else inner
        for key, inner in value.items()
    }
