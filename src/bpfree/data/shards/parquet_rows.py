"""Samples that stay in Parquet files: a row group is read when a batch needs it, and kept while its window is used."""

from collections import OrderedDict
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from bpfree.data.files.rows import Blocks
from bpfree.data.shards.parquet_cells import Cells, Chosen
from bpfree.data.shards.parquet_files import ParquetFiles


class ParquetRows:
    """The rows of Parquet files, as a source of `bpfree.data.files.rows.Rows`. A block is a row group.

    Args:
        files: the Parquet files.
        cells: makes samples of rows.
        window: the number of samples that a shuffled order mixes at a time. Row groups with so many rows are kept.
    """

    def __init__(self, files: ParquetFiles, cells: Cells, window: int) -> None:
        self.files = files
        self.cells = cells
        self.path = files.paths[0].parent
        self.shape, self.dtype = cells.shape, cells.dtype
        rows = torch.tensor([group.rows for group in files.groups])
        self._begins = rows.cumsum(0) - rows
        self.blocks: Blocks | None = Blocks(torch.arange(len(rows)).repeat_interleave(rows), window)
        self._window = window
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()

    @property
    def bytes_read(self) -> int:
        """The number of bytes of the files that were read so far, for measurements."""
        return self.files.bytes_read

    def read(self, index: Tensor) -> Tensor:
        """Return the rows at the positions `index` [n], int64, as a tensor [n, ...] in memory.

        Raises:
            UserError: a file has changed or is damaged, or a row is not a sample like the first one.
        """
        assert self.blocks is not None
        out = torch.empty(len(index), *self.shape, dtype=self.dtype)
        group = self.blocks.of[index]
        row = index - self._begins[group]
        # Those that are kept first: where two windows meet, new row groups take the place of old ones.
        chosen = []
        for number in sorted(set(group.tolist()), key=lambda number: (number not in self._kept, number)):
            at = (group == number).nonzero().flatten()
            chosen.append(Chosen(self._group(number), row[at], at, self.files.name(self.files.groups[number])))
        self.cells.fill(out, chosen)
        return out

    def _group(self, number: int) -> Any:
        """Return a row group, from those that are kept or from its file."""
        with self._lock:
            if number not in self._kept:
                group = self.files.groups[number]
                table = self.files.read(group, self.cells.columns)
                self._kept[number] = self.cells.load(table, self.files.name(group))
                most = self._window + group.rows
                while sum(self.files.groups[kept].rows for kept in self._kept) > most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]
