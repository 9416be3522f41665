"""`bpfree data`: which data sets there are, getting them, and checking what is there."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from bpfree.cli.shell import DataDir, errors_in_one_line
from bpfree.data import FACTS, data_directory
from bpfree.data.checks import check, here
from bpfree.errors import unknown
from bpfree.runs.config import parse
from bpfree.runs.config_file import apply_override

data = typer.Typer(help="List, download and check data sets.", no_args_is_help=True)

_WIDEST = 120
_GO_ON = ". What came is kept; the same command goes on"
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `bpfree data list` shows them.")]


@data.command("list")
def list_data(data_dir: DataDir = None) -> None:
    """Show what can be had by name: its size, its licence, where it is from and whether it is here."""
    with errors_in_one_line():
        folder = data_directory(data_dir)
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for heading in ("name", "training", "test", "classes", "shape", "MB", "licence", "from", "here"):
        table.add_column(heading, no_wrap=True)
    for name, facts in FACTS.items():
        shape = "x".join(map(str, facts.shape))
        known = (f"{facts.train:,}", f"{facts.test:,}", str(facts.classes or "numbers"), shape, f"{facts.megabytes:,}")
        host = urlsplit(facts.origin).netloc.removeprefix("www.")
        table.add_row(name, *known, facts.licence, host, "yes" if here(name, folder) else "no")
    console = Console()
    console.width = max(console.width, _WIDEST)  # for a file or a narrow window, rather than with names cut off
    console.print(table)
    typer.echo(f"here: {folder}")


@data.command("get")
def get(
    name: Name,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of the data set, such as extra=true for svhn.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Download a data set, if it is not here, and read it once."""
    with errors_in_one_line(lambda error: _GO_ON if isinstance(error, KeyboardInterrupt) else ""):
        _check_name(name)
        values: dict[str, Any] = {"data": {"name": name}}
        for option in options or []:
            apply_override(values, f"data.{option}")
        folder = data_directory(data_dir)
        dataset = parse(values).data.load(folder)
    counts = (
        f"{len(dataset.train.y):,} training and {0 if dataset.test is None else len(dataset.test.y):,} test samples"
    )
    typer.echo(f"{name}: {counts} {list(dataset.train.tensor.shape[1:])} in {folder}")


@data.command("check")
def check_data(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: every one that is here.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Compare what is here with what was published; exit code 1 if it is damaged or not here."""
    with errors_in_one_line():
        folder = data_directory(data_dir)
        if name is not None:
            _check_name(name)
        names = [name] if name is not None else [known for known in FACTS if here(known, folder)]
        failed = [name for name in names if not _is_whole(name, folder)]
    if failed:
        raise typer.Exit(1)


def _is_whole(name: str, folder: Path) -> bool:
    if not here(name, folder):
        typer.echo(f"{name}: not in {folder}, or not all of it. `bpfree data get {name}` downloads it", err=True)
        return False
    findings = check(name, folder)
    for problem in findings.problems:
        typer.echo(f"{name}: damaged: {problem}", err=True)
    if findings.problems:
        return False
    facts = FACTS[name]
    hashes = f", {len(findings.published)} files as published by their md5" if findings.published else ""
    typer.echo(f"{name}: whole, {facts.train:,} training and {facts.test:,} test samples{hashes}")
    return True


def _check_name(name: str) -> None:
    if name not in FACTS:
        raise unknown("data set", name, FACTS)
