"""`bpfree ledger`."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.bar import RunsBar
from bpfree.cli.shell import DataDir, told_in_one_line
from bpfree.lab.ledger import Update, update
from bpfree.lab.ledger.status import Verdict

_GO_ON = ". What was trained is kept; go on with the same command"


def ledger(
    run: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Train what an entry lacks. May be given several times.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Train what any entry lacks, which takes days.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time, a thread each. Default: one for each core.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Set published figures beside ours: writes docs/ledger.md anew, in the root of the repository."""
    with told_in_one_line(lambda error: _GO_ON if isinstance(error, KeyboardInterrupt) else ""), RunsBar() as told:
        done = update(Path(), None if all_ else run or [], data_dir=data_dir, jobs=jobs, told=told)
    _tell(done, run or [])
    if done.failed:
        raise typer.Exit(1)


def _tell(done: Update, names: list[str]) -> None:
    for standing in done.standings:
        if standing.entry.name in names and standing.runs:
            typer.echo(f"{standing.entry.name}: {standing.mean:.{standing.entry.places}f}, {standing.verdict.value}")
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    verdicts = [standing.verdict for standing in done.standings]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    typer.echo(f"{counts}. Page: {done.page}")
