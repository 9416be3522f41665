"""The commands `bpfree data list`, `get` and `check`: show, download and check data sets."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from bpfree.cli import completion
from bpfree.cli.shell import DataDir, errors_in_one_line
from bpfree.data import FACTS, data_directory
from bpfree.data.sets.checks import check, is_readable
from bpfree.errors import unknown
from bpfree.runs.config import parse
from bpfree.runs.config_file import apply_override

data = typer.Typer(help="List, download and check data sets.", no_args_is_help=True)

_NARROWEST = 120  # letters; the table of data sets needs so many
_GO_ON = ". The part that was downloaded is kept. The same command goes on"
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A name from `bpfree data list`.", autocompletion=completion.datasets),
]


@data.command("list")
def list_data(data_dir: DataDir = None) -> None:
    """Show all data sets: their size, licence and origin, and whether they are on this machine."""
    with errors_in_one_line():
        folder = data_directory(data_dir)
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for heading in ("name", "training", "test", "classes", "shape", "MB", "licence", "origin", "here"):
        table.add_column(heading, no_wrap=True)
    for name, facts in FACTS.items():
        shape = "x".join(map(str, facts.shape))
        numbers = (
            f"{facts.train:,}",
            f"{facts.test:,}",
            str(facts.classes or "numbers"),
            shape,
            f"{facts.published.megabytes:,}",
        )
        host = urlsplit(facts.published.page).netloc.removeprefix("www.")
        table.add_row(name, *numbers, facts.published.licence, host, "yes" if is_readable(name, folder) else "no")
    console = Console()
    console.width = max(console.width, _NARROWEST)  # in a file or a narrow window, rich would cut off names
    console.print(table)
    typer.echo(f"here: {folder}")


@data.command("get")
def get(
    name: Name,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the data set, such as extra=true for svhn."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Download a data set, unless it is here already, and read it once to check it.

    \b
    Examples:
      bpfree data get mnist
      bpfree data get svhn extra=true
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line(lambda error: _GO_ON if isinstance(error, KeyboardInterrupt) else ""):
        _check_name(name)
        values: dict[str, Any] = {"data": {"name": name}}
        for option in options or []:
            apply_override(values, f"data.{option}")  # checked as in a config, so a wrong option has the same error
        folder = data_directory(data_dir)
        dataset = parse(values).data.load(folder)
    counts = (
        f"{len(dataset.train.y):,} training and {0 if dataset.test is None else len(dataset.test.y):,} test samples"
    )
    typer.echo(f"{name}: {counts} {list(dataset.train.tensor.shape[1:])} in {folder}")


@data.command("check")
def check_data(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Default: every data set that is here.", autocompletion=completion.datasets
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Compare data sets on this machine with the published ones. The exit code is 1 if one is damaged or missing."""
    with errors_in_one_line():
        folder = data_directory(data_dir)
        if name is not None:
            _check_name(name)
        names = [name] if name is not None else [each for each in FACTS if is_readable(each, folder)]
        # A list, so that the data sets behind a damaged one are checked too.
        failed = [name for name in names if not _is_whole(name, folder)]
    if failed:
        raise typer.Exit(1)


def _is_whole(name: str, folder: Path) -> bool:
    """Check a data set, print what was found, and return True if it is complete and undamaged.

    Args:
        name: the name of a data set.
        folder: the folder of the data sets.
    """
    if not is_readable(name, folder):
        typer.echo(f"{name}: missing or incomplete in {folder}. `bpfree data get {name}` downloads it", err=True)
        return False
    findings = check(name, folder)
    for problem in findings.problems:
        typer.echo(f"{name}: damaged: {problem}", err=True)
    if findings.problems:
        return False
    facts = FACTS[name]
    hashes = f", {len(findings.published)} files with the published md5 sums" if findings.published else ""
    typer.echo(f"{name}: complete, {facts.train:,} training and {facts.test:,} test samples{hashes}")
    return True


def _check_name(name: str) -> None:
    """Raise UserError if no data set has this name."""
    if name not in FACTS:
        raise unknown("data set", name, FACTS)
