"""The command `bpfree export`, which writes a run for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree import api
from bpfree.cli.shell import RunArgument, Trust, errors_in_one_line, path_of
from bpfree.errors import check_choice
from bpfree.export import BATCHES, FORMS


def export(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RULE.KEY=VALUE]...", help="Options of the rule for inference, such as rule.steps=50."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="onnx|torch",
            help="onnx: an ONNX model. torch: a program of torch.export. Default: by the end of FILE, else onnx.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file that ends in .onnx or .pt2. Default: model.onnx or model.pt2 in the run folder.",
            parser=path_of("--out"),
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a run to one file for other programs, from raw samples to probabilities or numbers.

    The file takes batches of any size. It is checked against torch before it is written.

    \b
    Examples:
      bpfree export runs/mnist-dfa
      bpfree export runs/mnist-noprop_dt --out digits.pt2
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        if format_ is not None:
            check_choice("--format", format_, FORMS)
        path = out or run / f"model{FORMS[format_ or 'onnx'].suffix}"
        loaded = api.load(run, overrides=overrides or [], trust=trust, device="cpu")
        written = loaded.export(path, format_)  # type: ignore[arg-type]  # checked above
        typer.echo(written.path)
        typer.echo(_verdict(written.difference, written.runtime))


def _verdict(difference: float | None, runtime: str) -> str:
    """Return what the check of the file found, as a line for the user."""
    if difference is None:
        return f"not checked: {runtime} is not installed. Install it: pip install 'bpfree[export]'"
    sizes = ", ".join(map(str, BATCHES))
    return f"checked with {runtime}: batches of {sizes} differ from torch by at most {difference:.1e}"
