"""The command `bpfree ledger`, for work on the repository of bpfree itself."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.shell import GO_ON, DataDir, Jobs, errors_in_one_line
from bpfree.lab.jobs.runs_bar import RunsBar
from bpfree.lab.ledger import Update, update
from bpfree.lab.ledger.page import count_verdicts


def ledger(
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Train the missing runs of this entry. Give it several times for several."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Train the missing runs of all entries. It takes days.")] = False,
    jobs: Jobs = None,
    data_dir: DataDir = None,
) -> None:
    """Compare our results with published results: write docs/ledger.md. Run it in the root of the repository."""
    # The bar is the inner context: it leaves the terminal before the line of an error is printed.
    with errors_in_one_line(lambda error: GO_ON if isinstance(error, KeyboardInterrupt) else ""), RunsBar(True) as bar:
        done = update(Path(), None if all_ else run or [], data_dir=data_dir, jobs=jobs, on_progress=bar)
    _print(done, run or [])
    if done.failed:
        raise typer.Exit(1)


def _print(done: Update, names: list[str]) -> None:
    """Print the status of the named entries, the errors, and the number of entries of each verdict.

    Args:
        done: the outcome of the update.
        names: names of the entries that the user asked for.
    """
    for status in done.statuses:
        if status.entry.name in names and status.runs:
            typer.echo(f"{status.entry.name}: {status.mean:.{status.entry.places}f}, {status.verdict.value}")
    for name, error in done.failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    typer.echo(f"{count_verdicts(done.statuses)}. Page: {done.page}")
