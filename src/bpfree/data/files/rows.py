"""Samples that stay in a file: a tensor whose rows are read when they are asked for.

Reading by offset rather than through a memory map: nothing of the file then counts to the process's memory, whatever
the system keeps of it, and random rows come twice as fast, since no page has to be mapped (docs/own_data.md).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map

from bpfree.errors import UserError

_CHUNK = 4 << 20  # bytes at a time where all samples are gone through
_KEYS = (int, slice, Tensor, list, np.ndarray)  # what chooses rows, and not what is in them
# Asked of a tensor without looking at its values.
_OF_ITSELF = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "requires_grad", "is_sparse", "layout")),
        *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.__len__),
        *(Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel),
    }
)


class RowFile:
    """An open file of rows of one size, from which any number of threads and forked processes may read.

    Args:
        path: of the file.
        offset: bytes before the first row.
        shape: of a row.
        dtype: of its values.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path = path
        self.offset = offset
        self.shape = shape
        self.dtype = dtype
        self.bytes = torch.empty(0, dtype=dtype).element_size()
        for length in shape:
            self.bytes *= length
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- for as long as there are tensors of it
        self._lock = Lock()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read(self, index: Tensor) -> Tensor:
        """Rows at the positions index [n], as a tensor [n, ...] in memory.

        Raises:
            UserError: the file ends too soon, since somebody has changed it.
        """
        out = torch.empty(len(index), *self.shape, dtype=self.dtype)
        if not out.numel():
            return out
        into = bytes_of(out)
        runs = list(_runs(index))
        if len(runs) > 1 and hasattr(os, "posix_fadvise"):  # the disk may fetch them all at once
            for first, count in runs:
                place = self.offset + first * self.bytes
                os.posix_fadvise(self._file.fileno(), place, count * self.bytes, os.POSIX_FADV_WILLNEED)
        done = 0
        for first, count in runs:
            size = count * self.bytes
            self._fill(into[done : done + size], self.offset + first * self.bytes)
            done += size
        return out

    def _fill(self, into: memoryview, place: int) -> None:
        while into:
            if hasattr(os, "preadv"):
                count = os.preadv(self._file.fileno(), [into], place)
            else:
                with self._lock:
                    self._file.seek(place)
                    count = self._file.readinto(into) or 0
            if not count:
                raise UserError(f"{self.path}: truncated while it was in use. Start again")
            into, place = into[count:], place + count


def bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous tensor, for files."""
    values: Any = x.view(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _runs(index: Tensor) -> Iterator[tuple[int, int]]:
    """Positions in a row as (first, count)."""
    cuts = (index.diff() != 1).nonzero().flatten() + 1
    begins = [0, *cuts.tolist()]
    for begin, end, first in zip(begins, [*begins[1:], len(index)], index[begins].tolist(), strict=True):
        yield first, end - begin


class Rows(Tensor):
    """A tensor [N, ...] in a file. `x[index]` and `x[a:b]` read those rows; anything else reads all of them.

    Args:
        file: where they are.
        positions: of the rows in it, int64 [N].

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "x").write_bytes(bytes(range(6)))
        ...     x = Rows(RowFile(Path(folder) / "x", 0, (2,), torch.uint8), torch.arange(3))
        ...     x.shape, x[1:].tolist(), x.rows(torch.tensor([2, 0]))[0].tolist()
        (torch.Size([3, 2]), [[2, 3], [4, 5]], [4, 5])
    """

    file: RowFile
    positions: Tensor

    @staticmethod
    def __new__(cls, file: RowFile, positions: Tensor) -> "Rows":
        """A tensor of that shape and type without memory of its own."""
        self = torch.empty(len(positions), *file.shape, dtype=file.dtype, device="meta").as_subclass(cls)
        self.file, self.positions = file, positions
        return self

    def __init__(self, file: RowFile, positions: Tensor) -> None:
        super().__init__()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Rows({self.file.path}, shape={list(self.shape)}, dtype={self.dtype})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where rows are when they are read."""
        return self.positions.device

    def rows(self, index: Tensor) -> "Rows":
        """Some of the rows, still in the file."""
        return Rows(self.file, self.positions[index])

    def load(self) -> Tensor:
        """All rows in memory."""
        return self.file.read(self.positions)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Torch calls this for whatever is done with such a tensor."""
        first = args[0] if args else None
        if func in _OF_ITSELF:
            with DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if isinstance(first, Rows) and func is Tensor.detach:
            return first
        if isinstance(first, Rows) and func is Tensor.__getitem__ and isinstance(args[1], _KEYS):
            chosen = first.positions[args[1]]
            return first.file.read(chosen.reshape(-1)).view(*chosen.shape, *first.file.shape)
        args, kwargs = tree_map(_in_memory, (args, kwargs or {}))
        return func(*args, **kwargs)


def _in_memory(value: Any) -> Any:
    return value.load() if isinstance(value, Rows) else value


def chunks(x: Tensor) -> Iterator[Tensor]:
    """The samples of x [N, ...] in order, some at a time, so that no second copy of them all is ever held."""
    row = max(x[:0].element_size() * x[0].numel(), 1) if len(x) else 1
    step = max(_CHUNK // row, 1)
    for start in range(0, len(x), step):
        yield x[start : start + step]
