"""Samples that stay in a file: a tensor whose rows are read when they are used.

Rows are read by their offset, and not through a memory map, for two reasons. The file then does not count as memory of
the process, and random rows come twice as fast, because the system need not map pages (docs/own_data.md).
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map

from bpfree.data.files.open_file import OpenFile

_CHUNK = 4 << 20  # bytes at a time, for code that reads all samples once
_KEYS = (int, slice, Tensor, list, np.ndarray)  # an index of these types chooses rows; a tuple also looks into rows
# Questions about a tensor that need no values, so nothing is read.
_WITHOUT_VALUES = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "requires_grad", "is_sparse", "layout")),
        *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.__len__),
        *(Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel),
    }
)


class Blocks(NamedTuple):
    """Rows that are read well only if they are neighbours. A shuffled order then keeps neighbours close.

    Attributes:
        of: the number of the block in which each row lies, int64 [N], from 0.
        window: the number of rows that a shuffled order mixes at a time; see `bpfree.data.order.local_order`.
    """

    of: Tensor
    window: int


class RowSource(Protocol):
    """Files that rows are read from: `RowFile`, or files whose rows are decoded.

    Attributes:
        path: of the file or files, for messages.
        shape: the shape of a row.
        dtype: the type of the values.
        blocks: the block of each row. None if rows are read well in any order. A source with blocks is slow to read as
            a whole, so nothing does so before training. It refuses values that are not finite when it reads them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Blocks | None

    def read(self, index: Tensor) -> Tensor:
        """Return the rows at the positions `index` [n], int64, as a tensor [n, ...] in memory."""


class RowFile:
    """An open file of rows of one size, one after another.

    Args:
        path: of the file.
        offset: the number of bytes before the first row.
        shape: the shape of a row.
        dtype: the type of the values.

    Raises:
        OSError: the file cannot be opened.
    """

    blocks: Blocks | None = None

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path = path
        self.offset = offset
        self.shape = shape
        self.dtype = dtype
        self.bytes = torch.empty(0, dtype=dtype).element_size()
        for length in shape:
            self.bytes *= length
        self._file = OpenFile(path)

    def read(self, index: Tensor) -> Tensor:
        """Return the rows at the positions `index` [n], int64, as a tensor [n, ...] in memory.

        Raises:
            UserError: the file is shorter than before, because somebody has changed it.
        """
        out = torch.empty(len(index), *self.shape, dtype=self.dtype)
        if not out.numel():
            return out
        into = bytes_of(out)
        pieces = [(self.offset + first * self.bytes, count * self.bytes) for first, count in _runs(index)]
        if len(pieces) > 1:
            self._file.announce(pieces)
        done = 0
        for place, size in pieces:
            self._file.fill(into[done : done + size], place)
            done += size
        return out


def bytes_of(x: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, to be read from or written to a file without a copy."""
    values: Any = x.view(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _runs(index: Tensor) -> Iterator[tuple[int, int]]:
    """Split positions into runs of neighbours (first, count): each run is one read."""
    cuts = (index.diff() != 1).nonzero().flatten() + 1
    begins = [0, *cuts.tolist()]
    for begin, end, first in zip(begins, [*begins[1:], len(index)], index[begins].tolist(), strict=True):
        yield first, end - begin


class Rows(Tensor):
    """A tensor [N, ...] in files. `x[index]` and `x[a:b]` read those rows; any other operation reads all rows.

    It is a subclass of Tensor on the device "meta": it has a shape and a type, but no memory. So code for tensors works
    with it unchanged, and nothing can read its missing values by mistake.

    Args:
        file: the open file or files.
        positions: the positions of the rows there, int64 [N].

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "x").write_bytes(bytes(range(6)))
        ...     x = Rows(RowFile(Path(folder) / "x", 0, (2,), torch.uint8), torch.arange(3))
        ...     x.shape, x[1:].tolist(), x.rows(torch.tensor([2, 0]))[0].tolist()
        (torch.Size([3, 2]), [[2, 3], [4, 5]], [4, 5])
    """

    file: RowSource
    positions: Tensor

    @staticmethod
    def __new__(cls, file: RowSource, positions: Tensor) -> "Rows":
        """Make a tensor of that shape and type without memory."""
        self = torch.empty(len(positions), *file.shape, dtype=file.dtype, device="meta").as_subclass(cls)
        self.file, self.positions = file, positions
        return self

    def __init__(self, file: RowSource, positions: Tensor) -> None:
        super().__init__()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Rows({self.file.path}, shape={list(self.shape)}, dtype={self.dtype})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of rows that are read: the CPU, and not "meta"."""
        return self.positions.device

    @property
    def blocks(self) -> Blocks | None:
        """The block of each row; None if rows are read well in any order."""
        blocks = self.file.blocks
        return None if blocks is None else blocks._replace(of=blocks.of[self.positions])

    def rows(self, index: Tensor) -> "Rows":
        """Return some of the rows, which still stay in their file."""
        return Rows(self.file, self.positions[index])

    def load(self) -> Tensor:
        """Return all rows as a tensor in memory."""
        return self.file.read(self.positions)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a torch function on such a tensor; torch calls this in place of each of its functions."""
        first = args[0] if args else None
        if func in _WITHOUT_VALUES:
            with DisableTorchFunctionSubclass():  # else `func` would call this method again, without end
                return func(*args, **(kwargs or {}))
        # Nothing in a file has a gradient. The general case below would read the whole file for a detached copy.
        if isinstance(first, Rows) and func is Tensor.detach:
            return first
        if isinstance(first, Rows) and func is Tensor.__getitem__ and isinstance(args[1], _KEYS):
            # An index of any shape, also a single number, is read as a flat list; its shape comes back afterwards.
            chosen = first.positions[args[1]]
            return first.file.read(chosen.reshape(-1)).view(*chosen.shape, *first.file.shape)
        # Any other function works on values: all rows of each Rows among the arguments are read, also in nested lists.
        args, kwargs = tree_map(_in_memory, (args, kwargs or {}))
        return func(*args, **kwargs)


def _in_memory(value: Any) -> Any:
    """Return all rows of a `Rows`, and any other value as it is."""
    return value.load() if isinstance(value, Rows) else value


def chunks(x: Tensor) -> Iterator[Tensor]:
    """Iterate over the samples of x [N, ...] in order, some at a time, so that a second copy of all is never in memory.

    Args:
        x: a tensor, or `Rows` in a file.
    """
    row = max(x[:0].element_size() * x[0].numel(), 1) if len(x) else 1
    step = max(_CHUNK // row, 1)
    for start in range(0, len(x), step):
        yield x[start : start + step]
