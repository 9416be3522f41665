"""Samples from columns of Parquet files: one column of images, one column of lists, or several columns of numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bpfree.data.files.pixels import PixelFormat
from bpfree.data.shards.decoders import ImageDecoder, as_samples, in_threads
from bpfree.data.shards.files import library
from bpfree.data.shards.parquet_files import EXTRA, ParquetFiles
from bpfree.errors import UserError


class Chosen(NamedTuple):
    """Rows of one row group that a batch needs.

    Attributes:
        loaded: what `Cells.load` has returned for the row group.
        rows: the positions of the rows in it, int64 [n].
        at: the positions of these rows in the batch, int64 [n].
        what: the row group as the user knows it, for errors.
    """

    loaded: Any
    rows: Tensor
    at: Tensor
    what: str


class Cells(Protocol):
    """Makes samples of the rows of a row group. All samples have the shape and type of the first one.

    Attributes:
        columns: the columns that are read.
        shape: the shape of a sample.
        dtype: the type of its values.
    """

    columns: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self, table: Any, what: str) -> Any:
        """Return the content of a row group, in the form in which it is kept while batches need it.

        Args:
            table: the columns, of pyarrow.
            what: the row group as the user knows it, for errors.

        Raises:
            UserError: values are missing, or samples cannot be made of them.
        """

    def fill(self, out: Tensor, chosen: Sequence[Chosen]) -> None:
        """Write samples to their places.

        Args:
            out: the samples of a batch, [B, ...].
            chosen: which rows go where.

        Raises:
            UserError: a sample cannot be decoded, or differs from the first one.
        """


class ImageCells:
    """Encoded images, as bytes or in the form of Hugging Face, {bytes, path}. They are decoded when a batch needs them.

    Args:
        files: the Parquet files.
        column: the column of images.
        form: the format that images are decoded to.

    Raises:
        UserError: the first image is missing or cannot be read.
    """

    def __init__(self, files: ParquetFiles, column: str, form: PixelFormat) -> None:
        self._is_struct = not _is_binary(files.schema.field(column).type)
        self.columns: tuple[str, ...] = (f"{column}.bytes" if self._is_struct else column,)
        group = files.groups[0]
        first = self.load(files.read(group, self.columns), files.name(group))
        self._decoder = ImageDecoder(form, first[0].as_py(), f"{files.name(group)}, row 0 of it")
        self.shape, self.dtype = self._decoder.shape, self._decoder.dtype

    def load(self, table: Any, what: str) -> Any:
        """Return the encoded images of a row group, as an array of pyarrow."""
        array = _combined(table.column(0))
        _refuse_missing(array, what)
        if self._is_struct:
            array = array.field("bytes")
            _refuse_missing(array, what, "an image; only a path is there, which is not followed")
        return array

    def fill(self, out: Tensor, chosen: Sequence[Chosen]) -> None:
        """Decode images to their places in uint8 [B, C, H, W]."""
        work = [
            (at, part.loaded[row], f"{part.what}, row {row:,} of it")
            for part in chosen
            for at, row in zip(part.at.tolist(), part.rows.tolist(), strict=True)
        ]

        def decode(i: int) -> None:
            at, content, what = work[i]
            out[at] = self._decoder(content.as_py(), what)

        in_threads(decode, len(work))


class ListCells:
    """Lists of numbers of one length, also nested, and tensors of a fixed shape. Bytes may be images.

    Args:
        files: the Parquet files.
        column: the column of lists.

    Raises:
        UserError: values of the first row group are missing, or its lists differ in length.
    """

    def __init__(self, files: ParquetFiles, column: str) -> None:
        self.columns: tuple[str, ...] = (column,)
        what = f"{files.name(files.groups[0])}, column '{column}'"
        first = as_samples(numbers(files.read(files.groups[0], self.columns).column(0), what), what)
        self.shape: tuple[int, ...] = tuple(first.shape[1:])
        self.dtype = first.dtype

    def load(self, table: Any, what: str) -> Tensor:
        """Return the samples of a row group [N, ...]."""
        what = f"{what}, column '{self.columns[0]}'"
        x = as_samples(numbers(table.column(0), what), what)
        if x.shape[1:] != self.shape:
            raise UserError(f"{what}: found lists {list(x.shape[1:])}, allowed: {list(self.shape)}, as before")
        return x

    def fill(self, out: Tensor, chosen: Sequence[Chosen]) -> None:
        """Copy samples to their places."""
        for part in chosen:
            out[part.at] = part.loaded[part.rows]


class TableCells:
    """Columns of numbers. A sample has a feature for each column; bools are 0 and 1.

    Args:
        columns: the columns.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.shape: tuple[int, ...] = (len(columns),)
        self.dtype = torch.float64

    def load(self, table: Any, what: str) -> Tensor:
        """Return the samples of a row group, float64 [N, F]."""
        features = [numbers(table.column(name), f"{what}, column '{name}'").astype(np.float64) for name in self.columns]
        x = torch.from_numpy(np.stack(features, 1))
        if not bool(x.isfinite().all()):
            row, column = (~x.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"{what}, column '{self.columns[column]}', row {row:,} of it: found {float(x[row, column])}, allowed: "
                "finite numbers"
            )
        return x

    def fill(self, out: Tensor, chosen: Sequence[Chosen]) -> None:
        """Copy samples to their places in float64 [B, F]."""
        for part in chosen:
            out[part.at] = part.loaded[part.rows]


def cells_of(files: ParquetFiles, columns: Sequence[str], form: PixelFormat) -> Cells:
    """Return how samples are made of some columns.

    Args:
        files: the Parquet files.
        columns: the columns that become samples.
        form: the format that images are decoded to.

    Raises:
        UserError: the columns are not one column of images or lists, or columns of numbers.
    """
    types = library("pyarrow.types", EXTRA)
    kinds = {name: files.schema.field(name).type for name in columns}
    if not kinds:
        raise UserError(f"{files.paths[0]}: found no column beside the label, allowed: at least one to learn from")
    first, kind = next(iter(kinds.items()))
    if len(kinds) == 1 and (_is_binary(kind) or _is_image(kind)):
        return ImageCells(files, first, form)
    if len(kinds) == 1 and _is_list(kind):
        return ListCells(files, first)
    for name, kind in kinds.items():
        is_number = (
            types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
        )
        if not is_number:
            raise UserError(
                f"data.columns: found column '{name}' of the type {kind} among {len(kinds)}, allowed: columns of "
                "numbers, or one column of images or lists. Name the columns that become samples with "
                "data.columns=[...], or leave some out with data.ignore=[...]"
            )
    return TableCells(columns)


def numbers(column: Any, what: str) -> "np.ndarray[Any, Any]":
    """Return a column of numbers [N], of lists [N, L], or of nested lists or tensors [N, ...].

    Args:
        column: values of pyarrow.
        what: the column as the user knows it, for errors.

    Raises:
        UserError: values are missing or not numbers, or lists differ in length.
    """
    arrow, types, compute = (library(name, EXTRA) for name in ("pyarrow", "pyarrow.types", "pyarrow.compute"))
    array = _combined(column)
    shape = [len(array)]
    if isinstance(array.type, arrow.FixedShapeTensorType):
        _refuse_missing(array, what)
        if array.type.permutation not in (None, [*range(len(array.type.shape))]):
            raise UserError(f"{what}: found tensors whose dimensions are permuted, allowed: in their order")
        shape += array.type.shape
        array = array.storage.flatten()
    while _is_list(array.type):
        _refuse_missing(array, what)
        lengths = compute.unique(compute.list_value_length(array)).to_pylist()
        if len(lengths) != 1:
            raise UserError(f"{what}: found lists of {min(lengths)} to {max(lengths)} values, allowed: of one length")
        shape.append(lengths[0])
        array = array.flatten()
    _refuse_missing(array, what)
    if types.is_decimal(array.type):
        array = array.cast(arrow.float64())
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise UserError(f"{what}: found values of the type {array.type}, allowed: numbers")
    found: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False, writable=True)
    return found.reshape(shape)


def _combined(column: Any) -> Any:
    """Return the pieces of a column as one array."""
    array = column.combine_chunks()
    arrow = library("pyarrow", EXTRA)
    return arrow.concat_arrays(array.chunks) if isinstance(array, arrow.ChunkedArray) else array


def _refuse_missing(array: Any, what: str, missing: str = "a value") -> None:
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{what}: found {array.null_count:,} rows without {missing}, the first is row {row:,} of it")


def _is_binary(kind: Any) -> bool:
    types = library("pyarrow.types", EXTRA)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    """Return True for images in the form of Hugging Face."""
    types = library("pyarrow.types", EXTRA)
    if not types.is_struct(kind):
        return False
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return "bytes" in fields and _is_binary(fields["bytes"])


def _is_list(kind: Any) -> bool:
    arrow, types = library("pyarrow", EXTRA), library("pyarrow.types", EXTRA)
    is_tensor = isinstance(kind, arrow.FixedShapeTensorType)
    return bool(is_tensor or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
