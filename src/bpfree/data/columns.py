"""The columns of a table as features of a net. A run keeps them, so that new rows become the same features."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError

MISSING = frozenset({"", "na", "n/a", "nan", "-nan", "null", "none", "?", "<na>", "#na", "#n/a"})
"""Texts that stand for a missing value, in small letters."""

_SHOWN = 10
_DECORATION = re.compile(r"[\s%\u2030$\u20ac\u00a3\u00a5'\u2019_]")  # of money, shares and thousands
# Numbers in groups, and numbers with a decimal comma: 1,234.5 or 1.234,5 or 0,5.
_GROUPED = re.compile(
    r"[+-]?(\d{1,3}(,\d{3})+(\.\d*)?|\d{1,3}(\.\d{3})+(,\d*)?|\d*,\d+|\d+,)(e[+-]?\d+)?", re.IGNORECASE
)
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_WITH_UNIT = re.compile(r"[+-]?\d+([.,]\d+)?\s+[^\W\d]{1,4}")  # 12 kg
# Dates and times: 2024-01-31, 12:30, 3 Jan 2024 or January 3, 2024.
_WHEN = re.compile(
    r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T].*)?|\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[ap]m)?"
    rf"|\d{{1,2}}[ .-]*{_MONTH}[ .,-]*\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{2,4}}",
    re.IGNORECASE,
)


class Column(NamedTuple):
    """A column of a table that a net learns from.

    Attributes:
        name: the title of the column.
        values: for a column of words, all words that it may hold; each becomes one feature (one-hot). None for numbers.
    """

    name: str
    values: tuple[str, ...] | None = None


def is_missing(text: str) -> bool:
    """Return True if a cell holds no value.

    Example:
        >>> is_missing(" N/A"), is_missing("0")
        (True, False)
    """
    return text.strip().lower() in MISSING


def number(text: str, decimal: str = ".") -> float | None:
    """Return the finite number in a cell; None if the cell holds anything else.

    Args:
        text: the text of the cell.
        decimal: the sign before the fraction, "." or ",".

    Example:
        >>> number(" 1e3 "), number("blue"), number("inf"), number("1_000"), number("0,5", ","), number("0.5", ",")
        (1000.0, None, None, None, 0.5, None)
    """
    if decimal == ",":  # "?" makes float() refuse a point, which would else be read as a fraction
        text = text.replace(".", "?").replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    # float() also reads "inf", "nan" and "1_000". In a table these are words or missing values.
    return value if math.isfinite(value) and "_" not in text else None


def is_like_a_number(text: str) -> bool:
    """Return True if a person would read a quantity or a time in a cell that `number` does not understand.

    Such a column must not become words: each value would be a class of its own, and nothing would be learned from it.

    Example:
        >>> [is_like_a_number(text) for text in ("0,5", "12.3%", "1,234.5", "2024-01-31", "12:30", "red", "3-4", "A1")]
        [True, True, True, True, True, False, False, False]
    """
    text, bare = text.strip(), _DECORATION.sub("", text)
    forms = _GROUPED.fullmatch(bare) or _WHEN.fullmatch(text) or _WITH_UNIT.fullmatch(text)
    return number(bare) is not None or forms is not None


def encode(
    columns: Sequence[Column], cells: Mapping[str, Sequence[str]], where: Sequence[str], decimal: str = "."
) -> Tensor:
    """Return the features of N rows, float64 [N, F]: numbers as they are, words one-hot.

    Args:
        columns: the columns that become features.
        cells: by title, the N cells of each column.
        where: the place of each row, such as "a.csv, line 5"; for errors.
        decimal: the sign before the fraction of a number, "." or ",".

    Raises:
        UserError: a cell is missing, is not a number, or is a word that the column may not hold.

    Example:
        >>> columns = [Column("age"), Column("colour", ("blue", "red"))]
        >>> encode(columns, {"age": ["7"], "colour": ["red"]}, ["line 2"]).tolist()
        [[7.0, 0.0, 1.0]]
    """
    features = torch.zeros(len(where), width(columns), dtype=torch.float64)
    at = 0
    for column in columns:
        if column.values is None:
            values = _numbers(column, cells[column.name], where, decimal)
        else:
            values = _words(column, cells, where)
        features[:, at : at + values.shape[1]] = values
        at += values.shape[1]
    return features


def _numbers(column: Column, cells: Sequence[str], where: Sequence[str], decimal: str) -> Tensor:
    """Return a column of numbers as float64 [N, 1]."""
    values = [number(cell, decimal) for cell in cells]
    for value, cell, place in zip(values, cells, where, strict=True):
        if value is None:
            raise _unfit(column, cell, place, "a number, as in other rows")
    return torch.tensor(values, dtype=torch.float64).view(-1, 1)


def _words(column: Column, cells: Mapping[str, Sequence[str]], where: Sequence[str]) -> Tensor:
    """Return a column of words one-hot, float64 [N, number of words]."""
    number_of = {word: i for i, word in enumerate(column.values or ())}
    places = [number_of.get(cell.strip()) for cell in cells[column.name]]
    for index, cell, place in zip(places, cells[column.name], where, strict=True):
        if index is None:
            shown = ", ".join(list(number_of)[:_SHOWN]) + (", ..." if len(number_of) > _SHOWN else "")
            raise _unfit(column, cell, place, f"{shown}, as in training")
    return torch.nn.functional.one_hot(torch.tensor(places), len(number_of)).double()


def _unfit(column: Column, cell: str, place: str, allowed: str) -> UserError:
    found = f"no value ({cell!r})" if is_missing(cell) else repr(cell)
    return UserError(f"{place}, column '{column.name}': found {found}, allowed: {allowed}")


def width(columns: Sequence[Column]) -> int:
    """Return F, the number of features of all columns together.

    Example:
        >>> width([Column("age"), Column("colour", ("red", "blue"))])
        3
    """
    return sum(1 if column.values is None else len(column.values) for column in columns)


def are_numbers(columns: Sequence[Column]) -> Tensor:
    """Return bool [F]: True for features that are numbers, False for words."""
    # A column of numbers is one feature, hence a tuple of one for it.
    return torch.tensor([column.values is None for column in columns for _ in column.values or (None,)])
