"""Read the user's own tables: CSV files with a title for each column, one of which is the label.

A column is numbers if all its cells are numbers, and words if none is. Anything between is an error that names a cell,
because a guess would be silent: a column of prices with one "n.a." would become thousands of words.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from bpfree.data.classes import name_classes, number_labels, with_test
from bpfree.data.columns import Column, encode, is_like_a_number, is_missing, number
from bpfree.data.dataset import Dataset
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.disk.paths import open_regular, user_path
from bpfree.errors import UserError, check_choice, unknown

_SHOWN = 10  # cells that an error names
_FEW_WORDS = 10  # different words in a column; so few are never names of rows, however short the table is
_UNTITLED = re.compile(r"(unnamed: ?\d+)?", re.IGNORECASE)  # titles that pandas gives to row numbers
_MOST_WORDS = 100  # different words in a column; a column with more holds names or texts


def table(
    data_dir: Path,
    *,
    path: Path,
    label: str,
    test_path: Path | None = None,
    test: float | None = None,
    words: Sequence[str] = (),
    ignore: Sequence[str] = (),
    missing: Literal["error", "drop"] = "error",
    values: bool = False,
    delimiter: str | None = None,
    decimal: Literal[".", ","] = ".",
) -> Dataset:
    """Your own table: a CSV file at data.path with a column data.label. Samples are [F], F features.

    Columns of numbers are standardised by the training samples. A column of words becomes one feature for each word.

    Args:
        data_dir: not used.
        path: the file, in UTF-8, with titles in its first line. A relative path counts from the current folder; a run's
            config keeps the full path.
        label: the title of the column to predict; its different values are the classes.
        test_path: a file of test samples with the same columns.
        test: the share of the rows that becomes the test split, by a fixed key. Default: 0.2, or 0 with `test_path`.
        words: titles of columns whose numbers are only names, such as postcodes.
        ignore: titles of columns that are left out.
        missing: for rows in which a value is missing: "error", or "drop" to leave these rows out.
        values: True if labels are numbers to be predicted (task regress), and not classes.
        delimiter: the sign between cells. Default: whichever of , ; tab | is most frequent in the first line.
        decimal: the sign before the fraction of a number, "." or ",".

    Raises:
        UserError: a file or column does not exist, cells are missing or do not fit their column, a column has no title,
            words look like numbers or dates, or a column has too many different words.
    """
    check_choice("data.decimal", decimal, (".", ","))
    sheets = {"train": _read(user_path(path, "data.path"), delimiter)}
    if test_path is not None:
        sheets["test"] = _read(user_path(test_path, "data.test_path"), delimiter)
    titles = _titles(sheets, label, words, ignore)
    # Only columns in use are searched for holes, so that a hole in an ignored column costs no row.
    sheets = {name: _complete(sheet, [*titles, label], missing) for name, sheet in sheets.items()}
    train = sheets["train"]
    # Columns and classes are those of the training file: a word that only the test file has is an error.
    columns = tuple(_column(title, train, title in words, decimal) for title in titles)
    names = None if values else _classes(train, label, decimal)
    splits = {
        name: Split(encode(columns, sheet.cells, sheet.places(), decimal), _labels(sheet, label, names, decimal))
        for name, sheet in sheets.items()
    }
    splits = with_test(splits, test)
    classes = 0 if names is None else len(names)
    return Dataset("table", splits["train"], splits.get("test"), Labels(classes, names), columns=columns)


def _classes(train: "_Sheet", label: str, decimal: str) -> tuple[str, ...]:
    """Return the different labels in order.

    Raises:
        UserError: there is only one label, labels have fractions, one number has two spellings, or there are nearly as
            many labels as rows.
    """
    names = name_classes([cell.strip() for cell in train.cells[label]])
    if len(names) < 2:
        raise UserError(f"data.label: found one value in column '{label}', {names[0]!r}, allowed: two or more classes")
    if fraction := _first_fraction(names, decimal):
        raise UserError(
            f"data.label: found {len(names)} different numbers in column '{label}', such as {fraction}, allowed: "
            "classes. To predict numbers give data.values=true and task=regress"
        )
    if len(names) > _FEW_WORDS and 2 * len(names) > len(train.lines):
        raise UserError(
            f"data.label: found {len(names)} different labels in the {len(train.lines)} rows of column '{label}', such "
            f"as {names[0]!r}, allowed: classes with several rows each. To predict numbers give data.values=true and "
            "task=regress"
        )
    # "1" and "1.0" would silently be two classes.
    spellings: dict[float, str] = {}
    for name in names:
        value = number(name, decimal)
        if value is not None and spellings.setdefault(value, name) != name:
            raise UserError(
                f"data.label: found {spellings[value]!r} and {name!r} in column '{label}', which are one number, "
                "allowed: one spelling for each class"
            )
    return names


def _first_fraction(names: Sequence[str], decimal: str) -> str | None:
    """Return the first number that is not an integer, if all labels are numbers or look like numbers; else None."""
    values = [number(name, decimal) for name in names]
    if None not in values:
        return next((name for name, value in zip(names, values, strict=True) if value and value % 1), None)
    # "0,5" is not a number where the decimal sign is a point. Such labels would silently become classes.
    return names[0] if all(is_like_a_number(name) for name in names) else None


def _labels(sheet: "_Sheet", label: str, names: Sequence[str] | None, decimal: str) -> Tensor:
    """Return labels as places among the names, int64 [N], or as numbers, float32 [N]."""
    if names is None:
        return encode([Column(label)], sheet.cells, sheet.places(), decimal)[:, 0].float()  # [N]
    return number_labels([cell.strip() for cell in sheet.cells[label]], names, str(sheet.path))


def read_features(path: Path, columns: Sequence[Column], decimal: str = ".", delimiter: str | None = None) -> Tensor:
    """Return the features of the rows of a CSV file, float64 [N, F]; columns that a net does not use are passed over.

    Args:
        path: of the file.
        columns: the columns that a net was trained on.
        decimal: the sign before the fraction of a number, "." or ",".
        delimiter: the sign between cells; None to guess it.

    Raises:
        UserError: the file or a column does not exist, or a cell does not fit its column.
    """
    sheet = _read(path, delimiter)
    for column in columns:
        if column.name not in sheet.cells:
            raise unknown("column", column.name, sheet.cells)
    return encode(columns, sheet.cells, sheet.places(), decimal)


class _Sheet(NamedTuple):
    """The cells of a CSV file as text.

    Attributes:
        path: of the file.
        cells: the cells of each column, by its title.
        lines: for each row its line in the file, for errors. A quoted cell may span several lines.
    """

    path: Path
    cells: dict[str, list[str]]
    lines: list[int]

    def places(self) -> list[str]:
        """Return the place of each row, for errors."""
        return [f"{self.path}, line {line}" for line in self.lines]


def _read(path: Path, delimiter: str | None) -> _Sheet:
    """Read a CSV file; cells stay text.

    Raises:
        UserError: the file does not exist, is not text, has no rows, has a title twice, or has a row of another length.
    """
    try:
        with io.TextIOWrapper(
            open_regular(path), encoding="utf-8-sig", newline=""
        ) as file:  # "sig": Excel writes a mark first
            first = file.readline()
            file.seek(0)
            # Without `strict`, csv reads a quote that is never closed as one cell with the rest of the file, and says
            # nothing.
            lines = csv.reader(file, delimiter=_one_letter(delimiter) or _guess(first), strict=True)
            titles = [title.strip() for title in next(lines, [])]
            # csv gives an empty list for an empty line, and many programs end a file with one.
            rows = [(lines.line_num, cells) for cells in lines if cells]
    except FileNotFoundError as error:
        raise UserError(f"{path}: found nothing there, allowed: a CSV file in UTF-8") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table that can be read ({error}), allowed: a CSV file in UTF-8") from error
    if repeated := [title for title, count in Counter(titles).items() if count > 1]:
        raise UserError(
            f"{path}: found the column '{repeated[0]}' twice, allowed: titles that differ, in the first line"
        )
    if not rows:
        raise UserError(f"{path}: found no rows below the titles, allowed: at least one")
    for line, cells in rows:
        if len(cells) != len(titles):
            raise UserError(
                f"{path}, line {line}: found {len(cells)} cells, allowed: {len(titles)}, the number of titles"
            )
    by_column = zip(*(cells for _, cells in rows), strict=True)
    return _Sheet(path, {t: list(cells) for t, cells in zip(titles, by_column, strict=True)}, [n for n, _ in rows])


def _one_letter(delimiter: str | None) -> str | None:
    """Return the delimiter that the user gave, or raise UserError if it has more than one letter."""
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(f"data.delimiter: found {delimiter!r}, allowed: one character, such as ';'")
    return delimiter


def _guess(line: str) -> str:
    """Return the delimiter that is most frequent in the line of titles."""
    # A file of one column has none of these signs. Then `max` returns the first, and the line stays one cell.
    return max(",;\t|", key=line.count)


def _titles(sheets: dict[str, _Sheet], label: str, words: Collection[str], ignore: Collection[str]) -> list[str]:
    """Return the titles of the columns that become features.

    Raises:
        UserError: a column that an option names does not exist, the test file lacks a column, or no column is left.
    """
    train = sheets["train"]
    for key, names in (("label", [label]), ("words", words), ("ignore", ignore)):
        for name in names:
            if name not in train.cells:
                raise unknown(f"column in data.{key}", name, train.cells)
    chosen = [title for title in train.cells if title != label and title not in ignore]
    # Row numbers would tell the net the order of the rows, which often is the order of the classes.
    if untitled := [title for title in chosen if _UNTITLED.fullmatch(title)]:
        raise UserError(
            f"{train.path}: found the column {untitled[0]!r}, which has no real title, such as pandas writes for the "
            f"numbers of rows, allowed: columns with titles. Leave it out with data.ignore=['{untitled[0]}'], or "
            "give it a title"
        )
    if not chosen:
        raise UserError(f"{train.path}: found no column beside '{label}', allowed: at least one to learn from")
    for sheet in sheets.values():
        if lacking := [title for title in [*chosen, label] if title not in sheet.cells]:
            raise UserError(f"{sheet.path}: lacks the column '{lacking[0]}', allowed: all those of training")
    return chosen


def _complete(sheet: _Sheet, titles: Sequence[str], missing: str) -> _Sheet:
    """Return the rows in which no value is missing.

    Raises:
        UserError: values are missing and `missing` is "error", or no row is left.
    """
    rows = range(len(sheet.lines))
    holes = sorted((i, title) for title in titles for i in rows if is_missing(sheet.cells[title][i]))
    if not holes:
        return sheet
    incomplete = {i for i, _ in holes}
    if missing == "error":
        shown = "; ".join(f"line {sheet.lines[i]}, column '{title}'" for i, title in holes[:_SHOWN])
        raise UserError(
            f"{sheet.path}: found {len(holes):,} cells without a value in {len(incomplete):,} of {len(rows):,} rows: "
            f"{shown}{'; ...' if len(holes) > _SHOWN else ''}. Fill them in, leave out those rows (data.missing=drop), "
            "or the columns (data.ignore=[...])"
        )
    kept = [i for i in rows if i not in incomplete]
    if not kept:
        raise UserError(f"{sheet.path}: every row lacks a value, allowed: some that are complete")
    cells = {title: [sheet.cells[title][i] for i in kept] for title in titles}
    return sheet._replace(cells=cells, lines=[sheet.lines[i] for i in kept])


def _column(title: str, sheet: _Sheet, are_words: bool, decimal: str) -> Column:
    """Return a column: numbers if all cells are numbers, words if none is or if the user says so.

    Raises:
        UserError: a column has numbers and words, or its words are too many or look like numbers.
    """
    cells = sheet.cells[title]
    texts = [i for i, cell in enumerate(cells) if number(cell, decimal) is None]
    if not texts and not are_words:
        return Column(title)
    if len(texts) < len(cells) and not are_words:
        raise UserError(
            f"{sheet.path}, line {sheet.lines[texts[0]]}, column '{title}': found {cells[texts[0]]!r}, in all "
            f"{len(texts):,} of {len(cells):,} cells that are not numbers, allowed: only numbers, or no numbers. "
            f"{_cure([cells[i] for i in texts], decimal)}, or read all as words with data.words=[{title}]"
        )
    # A set of texts has another order in each process. Without the sort, features would change their places.
    values = sorted({cell.strip() for cell in cells})
    if not are_words:
        _check_words(title, sheet, values, decimal)
    if len(values) > _MOST_WORDS:
        raise UserError(
            f"{sheet.path}, column '{title}': found {len(values):,} different words, such as {values[0]!r}, allowed: "
            f"at most {_MOST_WORDS}. Leave it out with data.ignore=[{title}]"
        )
    return Column(title, tuple(values))


def _check_words(title: str, sheet: _Sheet, values: Sequence[str], decimal: str) -> None:
    """Raise UserError if most words of a column look like numbers, or if they are names of the rows."""
    place = f"{sheet.path}, column '{title}'"
    alike = [value for value in values if is_like_a_number(value)]
    # Most and not all: a column of prices in which a few cells say "free" still holds numbers.
    if 2 * len(alike) > len(values):
        raise UserError(
            f"{place}: found {alike[0]!r}, which looks like a number or a date but is written as a word, allowed: "
            f"numbers such as 1234{decimal}5, or words. {_cure(alike, decimal)}, leave the column out "
            f"(data.ignore=[{title}]), or read all as words (data.words=[{title}])"
        )
    if len(values) > _FEW_WORDS and 2 * len(values) > len(sheet.lines):
        raise UserError(
            f"{place}: found {len(values):,} different words in {len(sheet.lines):,} rows, such as {values[0]!r}: "
            f"few rows have the same word, allowed: words that many rows have. Leave the column out "
            f"(data.ignore=[{title}]), or keep all these words (data.words=[{title}])"
        )


def _cure(cells: Sequence[str], decimal: str) -> str:
    """Return the advice for cells that look like numbers and cannot be read as numbers."""
    other = "," if decimal == "." else "."
    if all(number(cell, other) is not None for cell in cells):
        return f"Say how fractions are written (data.decimal='{other}')"
    return f"Write plain numbers such as 1234{decimal}5"
