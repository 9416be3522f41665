"""What the features of a table are, so that other rows can be turned into the same features."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""What stands for no value, whatever its case."""

_SHOWN = 10


class Column(NamedTuple):
    """A column of a table that a net is given.

    Attributes:
        name: its title.
        values: of a column of words, all that it may hold, one feature for each (one-hot); None for numbers.
    """

    name: str
    values: tuple[str, ...] | None = None


def is_missing(text: str) -> bool:
    """Whether a cell holds no value.

    >>> is_missing(" N/A"), is_missing("0")
    (True, False)
    """
    return text.strip().lower() in MISSING


def number(text: str) -> float | None:
    """The finite number in a cell, or None.

    >>> number(" 1e3 "), number("blue"), number("inf"), number("1_000")
    (1000.0, None, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def encode(columns: Sequence[Column], cells: Mapping[str, Sequence[str]], where: Sequence[str]) -> Tensor:
    """Features of rows, float64 [N, F]: numbers as they are, words one-hot.

    Args:
        columns: of the features.
        cells: of each column, by title; N of them.
        where: each row, as the user finds it; for errors.

    Raises:
        UserError: a cell is missing, no number, or a word that the column may not hold.
    """
    features = torch.zeros(len(where), width(columns), dtype=torch.float64)
    at = 0
    for column in columns:
        own = _numbers(column, cells[column.name], where) if column.values is None else _words(column, cells, where)
        features[:, at : at + own.shape[1]] = own
        at += own.shape[1]
    return features


def _numbers(column: Column, cells: Sequence[str], where: Sequence[str]) -> Tensor:
    values = [number(cell) for cell in cells]
    for value, cell, place in zip(values, cells, where, strict=True):
        if value is None:
            raise _unfit(column, cell, place, "a number, as in other rows")
    return torch.tensor(values, dtype=torch.float64).view(-1, 1)


def _words(column: Column, cells: Mapping[str, Sequence[str]], where: Sequence[str]) -> Tensor:
    known = {word: i for i, word in enumerate(column.values or ())}
    places = [known.get(cell.strip()) for cell in cells[column.name]]
    for index, cell, place in zip(places, cells[column.name], where, strict=True):
        if index is None:
            shown = ", ".join(list(known)[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            raise _unfit(column, cell, place, f"{shown}, as in training")
    return torch.nn.functional.one_hot(torch.tensor(places), len(known)).double()


def _unfit(column: Column, cell: str, place: str, allowed: str) -> UserError:
    found = f"no value ({cell!r})" if is_missing(cell) else repr(cell)
    return UserError(f"{place}, column '{column.name}': found {found}, allowed: {allowed}")


def width(columns: Sequence[Column]) -> int:
    """F, how many features the columns have together.

    >>> width([Column("age"), Column("colour", ("red", "blue"))])
    3
    """
    return sum(1 if column.values is None else len(column.values) for column in columns)


def are_numbers(columns: Sequence[Column]) -> Tensor:
    """Which of the features are numbers, bool [F]."""
    return torch.tensor([column.values is None for column in columns for _ in column.values or (None,)])
