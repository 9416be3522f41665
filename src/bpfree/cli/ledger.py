"""`bpfree ledger`."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.bar import RunsBar
from bpfree.cli.shell import DataDir, errors_in_one_line
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
    with (
        errors_in_one_line(lambda error: _GO_ON if isinstance(error, KeyboardInterrupt) else ""),
        RunsBar() as on_progress,
    ):
        done = update(Path(), None if all_ else run or [], data_dir=data_dir, jobs=jobs, on_progress=on_progress)
    _tell(done, run or [])
    if done.failed:
        raise typer.Exit(1)


def _tell(done: Update, names: list[str]) -> None:
    for status in done.statuses:
        if status.entry.name in names and status.runs:
            typer.echo(f"{status.entry.name}: {status.mean:.{status.entry.places}f}, {status.verdict.value}")
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    verdicts = [status.verdict for status in done.statuses]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    typer.echo(f"{counts}. Page: {done.page}")
