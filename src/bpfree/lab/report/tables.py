"""Tables of a page, which a click on a column's title sorts."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

from bpfree.lab.report.markup import block

_MISSING = {"", "-", "\u2013", "\u2014"}  # dashes, short and long


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the text of the cell.
        sort: the key to sort by; default: the text, or in a numeric column the number that the text is.
        note: small text below it.
        kind: the style: "best" in bold on green, "good" green, "bad" red, "muted" grey.
    """

    text: str
    sort: float | str | None = None
    note: str = ""
    kind: Literal["", "best", "good", "bad", "muted"] = ""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: the heading; a click on it sorts the table.
        note: small text below the title, such as the unit.
        numeric: True if the cells are numbers; they are then aligned to the right and sorted as numbers.
    """

    title: str
    note: str = ""
    numeric: bool = True


class Heading(NamedTuple):
    """A row of a table that begins a group of rows. Rows are sorted within their group.

    Attributes:
        text: what the rows below it have in common.
        note: small text beside it.
    """

    text: str
    note: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell | str] | Heading], *, caption: str = "") -> Markup:
    """Return a table that a click on a column's title sorts. Groups stay in their order, and each is sorted by itself.

    Missing values (an empty text, a dash, NaN) come last in both directions.

    Args:
        columns: the columns, from left to right.
        rows: the rows, each with one cell for each column; a text is a cell without a note. A `Heading` begins a
            group of rows.
        caption: a line above the table.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.

    >>> "<td" in table([Column("rule", numeric=False), Column("accuracy")], [["dfa", "0.98"]])
    True
    """
    groups: list[tuple[Heading | None, list[list[tuple[str, Cell]]]]] = []
    for row in rows:
        if isinstance(row, Heading) or not groups:
            groups.append((row if isinstance(row, Heading) else None, []))
        if not isinstance(row, Heading):
            cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
            groups[-1][1].append([(_key(cell, column), cell) for cell, column in zip(cells, columns, strict=True)])
    return block("table", columns, groups or [(None, [])], caption)


def _key(cell: Cell, column: Column) -> str:
    """Return the text that the browser sorts a cell by; "" for a missing value."""
    key = cell.sort
    if key is None:
        key = "" if cell.text.strip() in _MISSING else cell.text.strip()
    if not column.numeric:
        return str(key)
    try:
        # float() refuses the commas of counts, such as 1,234, and the sign of percents.
        number = float(key.replace(",", "").removesuffix("%") if isinstance(key, str) else key)
    except ValueError:
        return ""
    if math.isinf(number):  # `Number("inf")` is NaN in JavaScript
        return "Infinity" if number > 0 else "-Infinity"
    return "" if math.isnan(number) else repr(number)
