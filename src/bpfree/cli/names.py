"""The command `bpfree list`."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bpfree.cli.shell import errors_in_one_line
from bpfree.data import DATASETS
from bpfree.errors import check_choice
from bpfree.nets import NETS
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config_file import shipped
from bpfree.tasks import TASKS
from bpfree.trackers import TRACKERS
from bpfree.types import ALL_TASKS


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[rules|nets|tasks|datasets|trackers|configs]", help="The names to show. Default: all."),
    ] = None,
) -> None:
    """Show the names of rules, nets, tasks, data sets, trackers and configs, each with a short description.

    For rules, the last column shows the tasks that they can do.
    """
    tables: dict[str, dict[str, Any]] = {
        "rules": RULES,
        "nets": NETS,
        "tasks": TASKS,
        "datasets": DATASETS,
        "trackers": TRACKERS,
        "configs": dict.fromkeys(shipped()),
    }
    with errors_in_one_line():  # and not an enum of typer, whose error has another form than ours
        if what is not None:
            check_choice("list", what, tables)
    console = Console()
    for kind in tables if what is None else [what]:
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for name, thing in tables[kind].items():
            table.add_row(name, *([] if thing is None else [_first_line(thing)]), *_tasks(thing))
        console.print(table)


def _tasks(thing: object) -> list[str]:
    """Return the cell with the tasks of a rule; no cell for anything else."""
    if not (isinstance(thing, type) and issubclass(thing, Rule)):
        return []
    return ["any task" if thing.tasks == ALL_TASKS else ", ".join(thing.tasks)]


def _first_line(thing: object) -> str:
    """Return the first line of a docstring; `thing` is a class or a function."""
    return (thing.__doc__ or "").strip().splitlines()[0]
