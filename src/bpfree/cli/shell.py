"""What the commands share: how errors are told, and arguments that several take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bpfree.data.dataset import Split
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.runs.run import Run


def path_of(argument: str) -> Callable[[str], Path]:
    """Reads a path of the command line. Typer's own way would take an empty text for the current folder."""

    def path(text: str) -> Path:
        with errors_in_one_line():
            return user_path(text, argument)

    return path


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", parser=path_of("RUN"))]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the code that the run's config names (module:Class). It is executed.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where data sets are. Default: BPFREE_DATA, else the user cache.", parser=path_of("--data-dir")),
]


@contextmanager
def errors_in_one_line(hint: Callable[[BaseException], str] = lambda _: "") -> Iterator[None]:
    """Errors at a user's hand end the command with one line and exit code 2."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}{hint(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted{hint(error)}", err=True)
        raise typer.Exit(130) from None


def named_test_split(run: Run, data_dir: Path | None) -> Split | None:
    """Of the named data set that a run was trained on."""
    return run.config.data.load(data_dir).test
