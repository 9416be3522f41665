"""Parquet files with the same columns: which row groups they have, and the columns of a row group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_SET, RawIOBase
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bpfree.data.shards.files import library
from bpfree.disk.paths import open_regular
from bpfree.errors import UserError

EXTRA = "parquet"
LARGEST = 1 << 30
"""The largest number of bytes that columns of a row group may take in memory, into which they come as a whole."""

_ROWS = 256  # that are read at a time


class RowGroup(NamedTuple):
    """A row group: the rows of a Parquet file that are compressed together.

    Attributes:
        file: the place of its file among the paths.
        number: its number in the file, from 0.
        rows: the number of rows.
    """

    file: int
    number: int
    rows: int


class _Counted(RawIOBase):
    """A file for pyarrow that counts the bytes that are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(size)
        self.bytes += len(content)
        return content

    def seek(self, place: int, whence: int = SEEK_SET, /) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


class ParquetFiles:
    """Parquet files with the same columns. Only their descriptions, at their ends, are read at first.

    Args:
        paths: the files.
        like: files that must have the same columns, such as those of training; None if there are none.

    Raises:
        UserError: the package pyarrow is not installed, a file is damaged, or there are no rows.

    Attributes:
        schema: the columns and their types, of pyarrow; those of `like`, or else of the first file.
        groups: the row groups of all files, in order, without empty ones.
        bytes_read: how many bytes of the files were read so far, for measurements.
    """

    def __init__(self, paths: Sequence[Path], like: "ParquetFiles | None" = None) -> None:
        self._arrow = library("pyarrow", EXTRA)
        self._parquet = library("pyarrow.parquet", EXTRA)
        self.paths = paths
        self.bytes_read = 0
        self._metadata: list[Any] = []
        self._schemas: list[Any] = []
        for path in paths:
            with self._opened(path) as file:
                self._metadata.append(file.metadata)
                self._schemas.append(file.schema_arrow)
        self.schema: Any = self._schemas[0] if like is None else like.schema
        self.groups = [
            RowGroup(file, number, rows)
            for file, metadata in enumerate(self._metadata)
            for number in range(metadata.num_row_groups)
            if (rows := metadata.row_group(number).num_rows)
        ]
        if not self.groups:
            raise UserError(f"{paths[0]}: found no rows in {len(paths)} files, allowed: at least one")

    def check(self, columns: Sequence[str]) -> None:
        """Raise UserError unless each file has some columns, of the types in `schema`."""
        for path, schema in zip(self.paths, self._schemas, strict=True):
            for name in columns:
                allowed = self.schema.field(name).type
                found = schema.field(name).type if name in schema.names else "no such column"
                if found != allowed:
                    raise UserError(
                        f"{path}: found for column '{name}': {found}, allowed: {allowed}, as in other files"
                    )

    def read(self, group: RowGroup, columns: Sequence[str]) -> Any:
        """Return some columns of a row group, as a table of pyarrow.

        Args:
            group: the row group.
            columns: names of columns, or of parts of them such as "image.bytes".

        Raises:
            UserError: the file has changed or is damaged, or the row group is too large.
        """
        path = self.paths[group.file]
        with self._opened(path, self._metadata[group.file]) as file:
            return self._read(file, group, columns)

    def read_column(self, column: str) -> Iterator[tuple[str, Any]]:
        """Iterate over the row groups: the name of each, for errors, and its values of one column.

        Args:
            column: its name.

        Raises:
            UserError: see `read`.
        """
        for number, groups in groupby(self.groups, key=lambda group: group.file):
            with self._opened(self.paths[number], self._metadata[number]) as file:
                for group in groups:
                    yield self.name(group), self._read(file, group, [column]).column(0)

    def name(self, group: RowGroup) -> str:
        """Return the file and the number of a row group, for errors."""
        return f"{self.paths[group.file]}, row group {group.number}"

    def _read(self, file: Any, group: RowGroup, columns: Sequence[str]) -> Any:
        """Return some columns of a row group of an open file."""
        # In pieces, whose sizes are added up: sizes in a description may be lies, and pyarrow ends the whole process
        # if it is asked for the description of a damaged column.
        pieces, size = [], 0
        options = {"row_groups": [group.number], "columns": list(columns), "use_threads": False}
        for piece in file.iter_batches(_ROWS, **options):
            pieces.append(piece)
            size += piece.nbytes
            if size > LARGEST:
                raise UserError(
                    f"{self.name(group)}: found {group.rows:,} rows, which take more memory than allowed, "
                    f"{LARGEST >> 20:,} MiB. Write smaller row groups, such as row_group_size=1000 of pyarrow"
                )
        table = self._arrow.Table.from_batches(pieces)
        if len(table) != group.rows:
            raise ValueError(f"{len(table)} rows in place of {group.rows}")
        return table

    @contextmanager
    def _opened(self, path: Path, metadata: Any = None) -> Iterator[Any]:
        """Open a file for the block, in which exceptions of pyarrow become a UserError.

        Files do not stay open: a handle would be shared with forked processes, and a system limits their number.
        """
        try:
            with open_regular(path) as opened:
                counted = _Counted(opened)
                try:
                    with self._parquet.ParquetFile(counted, metadata=metadata) as file:
                        yield file
                finally:
                    self.bytes_read += counted.bytes
        except UserError:
            raise
        except (self._arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
            raise UserError(f"{path}: not a Parquet file that can be read ({reason})") from error
