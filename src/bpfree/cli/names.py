"""The command `bpfree list`."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfree.cli import completion
from bpfree.cli.catalog import KINDS, describe_in_a_line, tasks_of
from bpfree.cli.shell import errors_in_one_line
from bpfree.cli.show import explain
from bpfree.errors import check_choice
from bpfree.rule import Rule
from bpfree.runs.config_file import shipped


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[rules|nets|tasks|datasets|trackers|optimizers|schedules|configs]",
            help="The names to show. Default: all.",
            autocompletion=completion.kinds,
        ),
    ] = None,
) -> None:
    """Show the names of rules, nets, tasks, data sets, trackers and configs, each with a short description.

    For rules, the last column shows the tasks that they can do. `bpfree show NAME` explains one of them.
    """
    tables: dict[str, Any] = {kind.plural: kind.table for kind in KINDS}
    tables["configs"] = dict.fromkeys(shipped())
    console = Console(highlight=False)
    with errors_in_one_line():  # and not an enum of typer, whose error has another form than ours
        if what is not None and what not in tables and explain(what, console):
            return
        if what is not None:
            check_choice("list", what, tables)
    for kind in tables if what is None else [what]:
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for name, thing in tables[kind].items():
            cells = [] if thing is None else [_first_line(thing), *_tasks(thing)]
            table.add_row(name, *(Text(cell) for cell in cells))
        console.print(table)


def _tasks(thing: object) -> list[str]:
    """Return the cell with the tasks of a rule; no cell for anything else."""
    return [tasks_of(thing)] if isinstance(thing, type) and issubclass(thing, Rule) else []


def _first_line(thing: Any) -> str:
    return describe_in_a_line(thing)
