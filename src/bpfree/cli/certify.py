"""The command `bpfree certify`: it writes certificate.json, and a picture of the dependencies between layers."""

import json
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bpfree import api
from bpfree.cli import completion
from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.data import Preprocess, Split
from bpfree.disk.atomic import make_folder, refuse_to_replace, write_text
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.lab.certify import Certificate
from bpfree.lab.certify import certify as certify_rule
from bpfree.runs import folder
from bpfree.runs.assemble import Setup, assemble
from bpfree.runs.config_file import load_config

_FILE, _PICTURE = "certificate.json", "dependencies.png"
_WIDTH = 160  # of the tables where standard output is not a terminal


def certify(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|RUN",
            help="A YAML file, a shipped config such as digits/dfa, or a run folder.",
            autocompletion=completion.configs,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes of the config, such as net.hidden=[64,64] rule=dfa.",
            autocompletion=completion.changes,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for certificate.json and dependencies.png. Default: the run folder.", parser=path_of("--out")
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    trust: Trust = False,
) -> None:
    """Measure how local a rule is on a net. The exit code is 1 unless it is as local as it declares.

    \b
    Examples:
      bpfree certify digits/dfa
      bpfree certify runs/mine --json
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        run = user_path(config, "CONFIG|RUN")
        is_run = (run / folder.CONFIG).is_file()
        certificate = _of_run(run, overrides, data_dir, trust) if is_run else _of_config(config, overrides, data_dir)
        if out is not None:
            _write(certificate, out / _FILE, out / _PICTURE)
        elif is_run:
            # The run may be anybody's: a link in place of plots/ would let it write to another folder.
            refuse_to_replace(run / folder.PLOTS, folder=True)
            _write(certificate, run / _FILE, run / folder.PLOTS / _PICTURE)
    if as_json:
        typer.echo(json.dumps(certificate.to_json(), indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(certificate)
    for line in certificate.violations:
        typer.echo(f"violation: {' '.join(line.split())}", err=True)
    for line in certificate.unmeasured:
        typer.echo(f"cannot tell: {' '.join(line.split())}", err=True)
    if not certificate.ok:
        raise typer.Exit(1)


def _of_run(path: Path, overrides: list[str] | None, data_dir: Path | None, trust: bool) -> Certificate:
    """Return the certificate of a run, measured on samples of its training data.

    Args:
        path: the run folder.
        overrides: options of the rule, `rule.key=value`.
        data_dir: the folder of the data sets; None for the default.
        trust: import the code that the config of the run names.

    Raises:
        UserError: the run cannot be loaded, or its data came from Python.
    """
    loaded = api.load(path, overrides=overrides or [], trust=trust)
    if "data" in loaded.from_python:
        raise UserError(
            f"{path}: the data of the run came from Python. Certify the run in Python: "
            "bpfree.certify(run.net, run.trainer.rule, run.task, batch)"
        )
    dataset = loaded.config.data.load(data_dir)
    return _of(loaded.setup, dataset.train)


def _of_config(name: str, overrides: list[str] | None, data_dir: Path | None) -> Certificate:
    """Return the certificate of a config, measured on a net with initial weights.

    Args:
        name: a YAML file or the name of a shipped config.
        overrides: changes `section.key=value`.
        data_dir: the folder of the data sets; None for the default.

    Raises:
        UserError: the config is wrong, or its data cannot be read.
    """
    config = load_config(name, overrides or [])
    dataset = config.data.load(data_dir)
    train, _ = dataset.carve(config.data.validation, config.train.seed)
    return _of(assemble(config, Preprocess.of(dataset, train)), train)


def _of(setup: Setup, split: Split) -> Certificate:
    """Return the certificate of a rule and net, measured on the first batch of its training.

    Args:
        setup: the net with its rule and task.
        split: the samples of the training.
    """
    batch = next(setup.training_batches(split).epoch())
    console = Console(stderr=True)
    with warnings.catch_warnings(), console.status("measuring") if console.is_terminal else nullcontext():
        warnings.simplefilter("ignore")  # warnings about training, which does not take place here
        return certify_rule(setup.net, setup.trainer.rule, setup.task, batch)


def _write(certificate: Certificate, file: Path, picture: Path) -> None:
    """Write a certificate as JSON, and its dependencies as a picture if they were measured.

    Args:
        certificate: the certificate.
        file: the path of the JSON file, whose folder is made.
        picture: the path of the picture.
    """
    make_folder(file.parent)
    write_text(file, json.dumps(certificate.to_json(), indent=1) + "\n")
    if certificate.measured is not None:
        from bpfree.lab.certify.picture import plot_dependencies  # it imports matplotlib, which takes a while

        plot_dependencies(certificate, picture)
