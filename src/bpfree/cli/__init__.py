"""The shell door. Knobs live in the config, so there are few verbs and few options; a test freezes them."""

import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from bpfree._version import __version__
from bpfree.cli.certify import certify
from bpfree.cli.compare import compare_rules
from bpfree.cli.data import data
from bpfree.cli.ledger import ledger
from bpfree.cli.names import list_names
from bpfree.cli.report import board, report
from bpfree.cli.training import train
from bpfree.cli.tune import tune
from bpfree.cli.using import evaluate, plots, predict
from bpfree.training.allocator import keep_freed_memory

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "tune": tune,
    "eval": evaluate,
    "plots": plots,
    "predict": predict,
    "report": report,
    "board": board,
    "compare": compare_rules,
    "certify": certify,
    "ledger": ledger,
    "list": list_names,
}

app = typer.Typer(
    help="Train neural networks without end-to-end backpropagation.",
    epilog=(
        "What is trusted: a config file that you give may name code of yours (name: my_module:MyNet), which is "
        "imported from installed packages and, last, from the current folder. A run folder may be anybody's: what its "
        "config names is not imported unless you say --trust. See docs/runs.md."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bpfree {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    keep_freed_memory()


def main() -> None:
    """Run the command line `bpfree`."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    app()
