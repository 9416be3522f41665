"""The command line `bpfree`.

Settings belong in the config, so there are few commands and few options. tests/test_cli.py holds the list of them, so
that nobody adds one by accident. The docstrings of the command functions are the texts of `--help`.
"""

import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from bpfree._version import __version__
from bpfree.cli import several
from bpfree.cli.certify import certify
from bpfree.cli.compare import compare_rules
from bpfree.cli.data import data
from bpfree.cli.export import export
from bpfree.cli.generate import generate
from bpfree.cli.ledger import ledger
from bpfree.cli.names import list_names
from bpfree.cli.report import board, report
from bpfree.cli.serve import serve
from bpfree.cli.show import show
from bpfree.cli.training import train
from bpfree.cli.tune import tune
from bpfree.cli.using import evaluate, plots, predict
from bpfree.cli.watch import watch
from bpfree.screen import loading
from bpfree.screen.first import is_first
from bpfree.training.allocator import keep_freed_memory

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "tune": tune,
    "eval": evaluate,
    "plots": plots,
    "predict": predict,
    "generate": generate,
    "export": export,
    "report": report,
    "board": board,
    "serve": serve,
    "watch": watch,
    "compare": compare_rules,
    "certify": certify,
    "ledger": ledger,
    "list": list_names,
    "show": show,
}

app = typer.Typer(
    help="Train neural networks without end-to-end backpropagation.",
    epilog=(
        "Which code is executed: a config file that you give may name your own code (name: my_module:MyNet). It is "
        "imported from installed packages, else from the current folder. A run folder may come from somebody else, so "
        "code that its config names is not imported without --trust. See docs/runs.md."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with the values of all variables would print whole tensors
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data, name="data")


def _version(is_wanted: bool) -> None:
    """Print the version and end the program, if the option --version is there."""
    if is_wanted:
        typer.echo(f"bpfree {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    several.refuse_several(context.invoked_subcommand or "")
    # Here and not when bpfree is imported: a library must not change the memory allocation of its user's program.
    keep_freed_memory()


def main() -> None:
    """Run the command line `bpfree`."""
    loading.end()
    # One line without the path and source line of bpfree, which say nothing to its user.
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    # Python hides deprecations from users of a program, but the keys of a config are the user's own.
    warnings.filterwarnings("once", r"\S+ is now ", DeprecationWarning)
    if not is_first():
        warnings.simplefilter("ignore")
    several.run(app)
