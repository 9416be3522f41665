"""The tables that `bpfree compare` prints at its end."""

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bpfree.lab.compare import Comparison
from bpfree.lab.compare.page import MISSING, balanced, columns, is_skewed, probability, score

_WIDTH = 120  # of the table where standard output is not a terminal


def print_comparison(done: Comparison) -> None:
    """Print the table of each group, the errors of failed runs, and the path of the report.

    Args:
        done: the finished comparison.
    """
    console = Console(width=None if Console().is_terminal else _WIDTH)
    for group in done.record["groups"]:
        console.print(_table(group))
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    typer.echo(f"report: {done.page}")


def _table(group: dict[str, Any]) -> Table:
    """Return the table of a group: the most important columns of the HTML report.

    Args:
        group: a group of the record.
    """
    score_title = columns(group)[1].title
    table = Table(title=group["name"], title_justify="left")
    table.add_column("rule")
    balance = ["balanced"] if is_skewed(group) else []
    costs = ("CPU s", "s to target", "peak MB", "parameters")
    for title in (score_title, *balance, "difference", "p", *costs):
        table.add_column(title, justify="right")
    for row in group["rows"]:
        table.add_row(row["name"], *(_cells(row, skewed=bool(balance)) if row["runs"] else ["not trained"]))
    return table


def _cells(row: dict[str, Any], *, skewed: bool) -> list[str]:
    """Return the cells of a row after its name; p is that over seeds, or over samples if there is one seed.

    Args:
        row: a row of the record that has runs.
        skewed: True if the table has a column for balanced accuracy.
    """
    points = 100 if row["metric"] == "accuracy" else 1
    p = row.get("p_seeds", row.get("p_samples"))
    seconds = row.get("seconds_to_target")
    return [
        score(row),
        *([balanced(row)] if skewed else []),
        f"{points * row['difference']:+.2f}" if "difference" in row else MISSING,
        probability(p),
        f"{row['cpu_seconds']:.1f}",
        MISSING if seconds is None else f"{seconds:.1f}",
        f"{row['step_memory_bytes'] / 1e6:.2f}",
        f"{row['parameters'] + row['rule_parameters']:,.0f}",
    ]
