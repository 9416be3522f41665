"""`bpfree report` and `bpfree board`: looking at runs."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.lab import board as lab_board

RUNS = Path("runs")


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of such.", parser=path_of("RUN"))
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Default: report.html in the run, or beside the runs.", parser=path_of("--out")
        ),
    ] = None,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Write what came of runs as one HTML file, and their pictures as PNGs; prints its path."""
    from bpfree.lab.report.report import report as write_report  # with matplotlib, which takes a while to import

    with errors_in_one_line():
        typer.echo(write_report(list(runs), out, data_dir=data_dir, trust=trust))


def board(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN|DIR]...", help="Run folders, or folders of such. Default: runs."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: 6006, or the next free one.")] = None,
) -> None:
    """Open TensorBoard on runs until Ctrl-C; prints its address."""
    with errors_in_one_line():
        lab_board.serve(runs or [RUNS], port, typer.echo)
