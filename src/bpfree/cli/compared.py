"""The tables that `bpfree compare` prints at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from bpfree.lab.compare import Comparison
from bpfree.lab.compare.families import by_net
from bpfree.lab.compare.page import MISSING, balanced, has_energy, has_growth, has_heads, has_queries, is_skewed, score
from bpfree.lab.report.format import of_heads
from bpfree.lab.statistics import difference_text, footer, mark

WIDTH = 100
"""The characters of a line where standard output is not a terminal."""
_COLORS = {"better": "green", "worse": "red"}  # by the verdict of a row; others have no colour
_SAVINGS = ("growth", "time to target", "queries", "heads", "energy", "std", "thousands", "CPU", "balanced", "memory")
"""What a table that is too wide leaves out, in this order; "thousands" are those of the parameters."""
Row = dict[str, Any]


@dataclass
class _Column:
    """A column of a table: the two lines of its title, and a cell for each row that was trained."""

    title: tuple[str, str]
    cells: list[str]

    @property
    def width(self) -> int:
        """The number of characters of the longest line."""
        return max(map(len, (*self.title, *self.cells)))


def print_comparison(done: Comparison) -> None:
    """Print the table of each group, the errors of failed runs, and the path of the report.

    Args:
        done: the finished comparison.
    """
    console = Console(width=None if Console().is_terminal else WIDTH, highlight=False)
    for group in done.record["groups"]:
        for line in lines(group, console.width):
            console.print(line, soft_wrap=True)
        console.print()
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    typer.echo(f"report: {done.page}")


def lines(group: Row, width: int) -> list[Text]:
    """Return the lines that are printed for a group: its table, and the sentences that explain it.

    Args:
        group: a group of the record.
        width: the number of characters of a line.
    """
    return [*table(group, width), *map(Text, footer(group["rows"]))]


def table(group: Row, width: int) -> list[Text]:
    """Return the lines of a group's table: the most important columns of the HTML report.

    The rows of each net stand together, its baseline first. If there are several nets, each has a line with its name.

    Args:
        group: a group of the record.
        width: the number of characters of a line. A table that is too wide has fewer columns, but whole numbers.
    """
    nets = by_net(group["rows"])
    trained = [row for rows in nets.values() for row in rows if row["runs"]]
    names = _Column(("", "rule"), [row["name"] for row in group["rows"]])
    columns: list[_Column] = []
    for number in range(len(_SAVINGS) + 1):
        columns = _columns(trained, _SAVINGS[:number], group) if trained else []
        if names.width + sum(2 + column.width for column in columns) <= width:
            break
    of_table = [Text(group["name"], "bold")]
    of_table += [Text(_line(names.width, names.title[n], columns, [c.title[n] for c in columns])) for n in (0, 1)]
    cells = iter(zip(*(column.cells for column in columns), strict=True))
    for net, rows in nets.items():
        if len(nets) > 1:
            of_table.append(Text(f"net: {net}", "bold"))
        for row in rows:
            if row["runs"]:
                text = _line(names.width, row["name"], columns, next(cells))
                of_table.append(Text(text, _COLORS.get(row.get("verdict", ""), "")))
            else:
                of_table.append(Text(f"{row['name']:{names.width}}  not trained", "dim"))
    return of_table


def _columns(rows: Sequence[Row], without: Sequence[str], group: Row) -> list[_Column]:
    """Return the columns after the name.

    Args:
        rows: the rows that were trained.
        without: what is left out; see `_SAVINGS`.
        group: their group.
    """
    split, metric = rows[0]["runs"][0]["split"], rows[0]["metric"]
    parameters = [row["parameters"] + row["rule_parameters"] for row in rows]
    scores = [score(row | {"std": None} if "std" in without else row) for row in rows]
    seconds = [row.get("seconds_to_target") for row in rows]
    columns = [
        _Column(("", "params"), [_thousands(count) for count in parameters])
        if "thousands" in without
        else _Column(("", "parameters"), [f"{count:,.0f}" for count in parameters]),
        _Column((split, f"{metric}{' %' * (metric == 'accuracy')}"), scores),
    ]
    if is_skewed(group) and "balanced" not in without:
        columns.append(_Column(("balanced", f"{metric} %"), [balanced(row) for row in rows]))
    if any("difference" in row for row in rows):
        cells = [f"{difference_text(row)}{mark(row) or ' '}" if "difference" in row else MISSING + " " for row in rows]
        columns.append(_Column(("difference ", "[95 % interval] "), cells))
    if "CPU" not in without:
        columns.append(_Column(("CPU", "s"), [f"{row['cpu_seconds']:.1f}" for row in rows]))
    if "time to target" not in without:
        columns.append(_Column(("s to", "target"), [_optional(s, ".1f") for s in seconds]))
    if "memory" not in without:
        columns.append(_Column(("peak", "MB"), [f"{row['step_memory_bytes'] / 1e6:.2f}" for row in rows]))
    if has_growth(group) and "growth" not in without:
        grown = [row.get("memory_growth_bytes") for row in rows]
        cells = [MISSING if count is None else f"{count / 1e6:.1f}" for count in grown]
        columns.append(_Column(("growth", "MB"), cells))
    if has_queries(group) and "queries" not in without:
        columns.append(_Column(("", "queries"), [_optional(row.get("queries"), ",.0f") for row in rows]))
    if has_heads(group) and "heads" not in without:
        added = [of_heads(row) for row in rows]
        cells = [MISSING if each is None else f"{each[0]:.0f} / {each[1]:.0f}" for each in added]
        columns.append(_Column(("heads, %", "par. / FLOPs"), cells))
    if has_energy(group) and "energy" not in without:
        columns.append(_Column(("energy", "J"), [_optional(row.get("energy_joules"), ",.1f") for row in rows]))
    return columns


def _optional(value: float | None, form: str) -> str:
    """Return a number in a format; a dash for None."""
    return MISSING if value is None else f"{value:{form}}"


def _thousands(count: float) -> str:
    """Return a number of parameters in four characters or fewer, such as "118k"."""
    return f"{count:.0f}" if count < 1000 else f"{count / 1e3:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"


def _line(width: int, name: str, columns: Sequence[_Column], cells: Sequence[str]) -> str:
    """Return a line of a table: a name of a width, and cells that end below each other."""
    parts = [f"{name:{width}}", *(f"{cell:>{column.width}}" for column, cell in zip(columns, cells, strict=True))]
    return "  ".join(parts).rstrip()
