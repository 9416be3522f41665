"""`bpfree compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bpfree.cli.bar import RunsBar
from bpfree.cli.shell import DataDir, told_in_one_line
from bpfree.errors import UserError
from bpfree.lab.compare import Comparison, compare
from bpfree.lab.compare.page import MISSING, balanced, columns, command_line, is_skewed, probability, score


def compare_rules(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Configs as for train, and KEY=VALUE for all of them.")
    ],
    rules: Annotated[
        str | None, typer.Option(help="Rules to train on each config's net and data, such as dfa,eggroll; or all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/compare-<config>.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time, a thread each. Default: one for each core.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="Metric to time. Default: 95 % of backprop's best.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Train rules on the same net, data and epochs, with backprop beside them, and report in HTML."""
    names = [name for name in configs if "=" not in name]
    overrides = [name for name in configs if "=" in name]
    if data_dir is not None:
        overrides.append(f"data.dir={data_dir.expanduser().resolve()}")
    with told_in_one_line(lambda error: f". {_GO_ON}" if isinstance(error, KeyboardInterrupt) else ""):
        if not names:
            raise UserError("CONFIG: none was given, allowed: one or more, such as digits/mlp")
        chosen = [rule.strip() for rule in (rules or "").split(",") if rule.strip()]
        command = _command(configs, rules, seeds, out, target)
        with RunsBar() as told:
            done = compare(
                names,
                rules=chosen,
                seeds=seeds,
                out=out,
                jobs=jobs,
                target=target,
                overrides=overrides,
                command=command,
                told=told,
            )
    _tell(done)
    if done.failed:
        raise typer.Exit(1)


_GO_ON = "What was trained is kept; go on with the same command"


def _command(configs: Sequence[str], rules: str | None, seeds: int, out: Path | None, target: float | None) -> str:
    """Without what holds on one machine only."""
    options = [("--rules", rules), ("--seeds", seeds), ("--out", out), ("--target", target)]
    given = [str(part) for name, value in options if value is not None for part in (name, value)]
    return command_line(["compare", *configs, *given])


def _tell(done: Comparison) -> None:
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
