"""What `bpfree compare` says at the end."""

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bpfree.lab.compare import Comparison
from bpfree.lab.compare.page import MISSING, balanced, columns, is_skewed, probability, score


def tell(done: Comparison) -> None:
    """Print the table of each group, what failed, and where the report is."""
    console = Console(width=None if Console().is_terminal else 120)
    for group in done.record["groups"]:
        console.print(_table(group))
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    typer.echo(f"report: {done.page}")


def _table(group: dict[str, Any]) -> Table:
    headings = columns(group)
    shown = Table(title=group["name"], title_justify="left")
    shown.add_column("rule")
    balance = ["balanced"] if is_skewed(group) else []
    for heading in (headings[1].title, *balance, "to backprop", "p", "CPU s", "to target", "peak MB", "parameters"):
        shown.add_column(heading, justify="right")
    for row in group["rows"]:
        shown.add_row(row["name"], *(_figures(row, skewed=bool(balance)) if row["runs"] else ["not trained"]))
    return shown


def _figures(row: dict[str, Any], *, skewed: bool) -> list[str]:
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
