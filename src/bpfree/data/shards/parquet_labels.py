"""Read the labels of Parquet files: a column of integers, words or bools, or numbers to be predicted."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.data.shards.files import library
from bpfree.data.shards.parquet_cells import numbers
from bpfree.data.shards.parquet_files import EXTRA, ParquetFiles
from bpfree.errors import UserError

_LONGEST = 200  # letters of the name of a class


def read_numbers(files: ParquetFiles, column: str) -> Tensor:
    """Return labels that are numbers to be predicted, float64 [N] or [N, ...].

    Args:
        files: the Parquet files.
        column: the column of the labels, which exists.

    Raises:
        UserError: values are missing or not numbers, or lists differ in length.
    """
    parts = [numbers(values, f"{where}, column '{column}'") for where, values in files.read_column(column)]
    if len(shapes := {part.shape[1:] for part in parts}) > 1:
        raise UserError(
            f"{files.paths[0].parent}, column '{column}': found labels of shapes {shapes}, allowed: of one shape"
        )
    return torch.from_numpy(np.concatenate(parts).astype(np.float64))


def read_classes(files: ParquetFiles, column: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels that are classes.

    Args:
        files: the Parquet files.
        column: the column of the labels.

    Returns:
        int64 [N], the place of each label among the different ones; and the different labels, as they come.

    Raises:
        UserError: values are missing, or are neither integers nor words.
    """
    types, kind = library("pyarrow.types", EXTRA), files.schema.field(column).type
    of = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(of) or types.is_boolean(of) or types.is_string(of) or types.is_large_string(of)):
        raise UserError(
            f"data.label: found column '{column}' of the type {kind}, allowed: integers or words. To predict numbers "
            "give data.values=true and task=regress"
        )
    names = class_names(files, column) or ()
    place: dict[str, int] = {}
    parts = []
    for where, values in files.read_column(column):
        if values.null_count:
            raise UserError(f"{where}, column '{column}': found {values.null_count:,} rows without a label")
        for part in values.dictionary_encode().chunks:
            labels = [_name(label, names, f"{where}, column '{column}'") for label in part.dictionary.to_pylist()]
            places = [place.setdefault(label, len(place)) for label in labels]
            parts.append(np.array(places, np.int64)[part.indices.to_numpy(zero_copy_only=False)])
    return torch.from_numpy(np.concatenate(parts)), tuple(place)


def class_names(files: ParquetFiles, column: str) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face writes into Parquet files; None if there are none.

    Args:
        files: the Parquet files.
        column: the column of the labels.
    """
    try:
        about = json.loads((files.schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    is_whole = isinstance(names, list) and len({*map(str, names)}) == len(names) > 1
    return tuple(map(str, names)) if is_whole and all(isinstance(name, str) for name in names) else None


def _name(label: Any, names: tuple[str, ...], where: str) -> str:
    """Return the name of a class for a value of the column."""
    if isinstance(label, int) and not isinstance(label, bool) and names:
        return names[label] if 0 <= label < len(names) else str(label)
    name = str(label).strip()
    if not 0 < len(name) <= _LONGEST:
        raise UserError(f"{where}: found a label of {len(name)} letters, allowed: 1 to {_LONGEST}")
    return name
