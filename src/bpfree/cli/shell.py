"""The parts that several commands share: errors on one line, and common arguments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli import several
from bpfree.data.split import Split
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.mesh import LostProcessError
from bpfree.runs.run import Run

GO_ON = ". Finished and begun runs are kept. The same command goes on"


def path_of(argument: str) -> Callable[[str], Path]:
    """Return a parser for a path on the command line.

    Args:
        argument: the name of the argument, for errors.
    """

    def path(text: str) -> Path:
        # Typer's own parser would take "" for the current folder: `--out "$UNSET"` would write there.
        with errors_in_one_line():
            return user_path(text, argument)

    return path


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", parser=path_of("RUN"))]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Import the code that the config of the run names (module:Class). It is executed."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets. Default: the variable BPFREE_DATA, else the user cache.",
        parser=path_of("--data-dir"),
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at the same time, each with one thread. Default: one for each core, or one with a GPU."
    ),
]
LauncherName = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="local|slurm|submitit",
        help="local: processes on this machine. slurm: jobs of a cluster, see docs/compare.md. submitit: a rehearsal "
        "of slurm on this machine.",
    ),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        help="An option of Slurm, such as partition=gpu, gpus_per_node=1, or time=60 (minutes, required). Repeat it "
        "for several.",
    ),
]


@contextmanager
def errors_in_one_line(hint: Callable[[BaseException], str] = lambda _: "") -> Iterator[None]:
    """End the command with one line and exit code 2 after an error of the user, and with 130 after Ctrl-C.

    If another process of the training is lost, the exit code is 1.

    Args:
        hint: returns a text to add to the line, such as how to go on.

    Raises:
        typer.Exit: in place of a UserError, OSError, LostProcessError or KeyboardInterrupt of the block. Other errors
            are defects of bpfree and keep their traceback.
    """
    try:
        yield
    except (UserError, OSError) as error:
        has_told = several.tell(f"error: {' '.join(str(error).split())}", hint(error))
        if isinstance(error, UserError):
            several.end_torchrun(has_told)
        raise typer.Exit(2) from error
    except LostProcessError as error:
        several.tell_lost(f"error: {error}", hint(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        several.tell_stop(f"interrupted{hint(error)}")
        raise typer.Exit(130) from None  # 128 + SIGINT, as shells report it


def named_test_split(run: Run, data_dir: Path | None) -> Split | None:
    """Load the test split of the data set that a run's config names; None if the data set does not have one.

    Args:
        run: a run whose data did not come from Python.
        data_dir: the folder of the data sets; None for the default.

    Raises:
        UserError: the data set cannot be read or downloaded.
    """
    return run.config.data.load(data_dir).test
