"""The commands `bpfree report` and `bpfree board`, which show runs."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.lab import board as lab_board

RUNS = Path("runs")  # `bpfree train` makes its run folders here


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.", parser=path_of("RUN")),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Default: report.html in the run folder; for several runs in the folder that holds them.",
            parser=path_of("--out"),
        ),
    ] = None,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Write a report of runs as one HTML file, draw their pictures, and print the path of the file.

    \b
    Examples:
      bpfree report runs/mnist-dfa
      bpfree report runs
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    from bpfree.lab.report.report import report as write_report  # it imports matplotlib, which takes a while

    with errors_in_one_line():
        typer.echo(write_report(list(runs), out, data_dir=data_dir, trust=trust))


def board(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN|DIR]...", help="Run folders, or folders of run folders. Default: runs."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the server. Default: 6006, or the next free port.")
    ] = None,
) -> None:
    """Start TensorBoard on runs and print its address. Ctrl-C ends it."""
    with errors_in_one_line():
        lab_board.serve(runs or [RUNS], port, typer.echo)
