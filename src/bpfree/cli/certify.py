"""`bpfree certify`."""

import json
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bpfree import api
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
_SAMPLES = 32
_WIDTH = 160  # where there is no terminal


def certify(
    config: Annotated[str, typer.Argument(metavar="CONFIG|RUN", help="A config as for train, or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as net.hidden=[64,64] rule=dfa.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for certificate.json and dependencies.png. Default: that of a run.", parser=path_of("--out")
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
    trust: Trust = False,
) -> None:
    """Measure how local a rule is on a net; exit code 1 if it breaks what it declares."""
    with errors_in_one_line():
        run = user_path(config, "CONFIG|RUN")
        is_run = (run / folder.CONFIG).is_file()
        found = _of_run(run, overrides, data_dir, trust) if is_run else _of_config(config, overrides, data_dir)
        if out is not None:
            _write(found, out / _FILE, out / _PICTURE)
        elif is_run:
            refuse_to_replace(run / folder.PLOTS, folder=True)
            _write(found, run / _FILE, run / folder.PLOTS / _PICTURE)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(found)
    for line in found.violations:
        typer.echo(f"violation: {' '.join(line.split())}", err=True)
    if not found.ok:
        raise typer.Exit(1)


def _of_run(path: Path, overrides: list[str] | None, data_dir: Path | None, trust: bool) -> Certificate:
    loaded = api.load(path, overrides=overrides or [], trust=trust)
    if "data" in loaded.from_python:
        raise UserError(
            f"{path}: its data came from Python. Certify it there: bpfree.certify(run.net, run.trainer.rule, run.task, "
            "batch)"
        )
    dataset = loaded.config.data.load(data_dir)
    return _of(loaded.setup, dataset.train)


def _of_config(name: str, overrides: list[str] | None, data_dir: Path | None) -> Certificate:
    config = load_config(name, overrides or [])
    dataset = config.data.load(data_dir)
    train, _ = dataset.carve(config.data.validation, config.train.seed)
    return _of(assemble(config, Preprocess.of(dataset, train)), train)


def _of(setup: Setup, split: Split) -> Certificate:
    few = split.take(torch.arange(min(_SAMPLES, len(split.y))))
    batch = next(setup.batches(few).epoch())
    console = Console(stderr=True)
    with warnings.catch_warnings(), console.status("measuring") if console.is_terminal else nullcontext():
        warnings.simplefilter("ignore")  # of what training would come to
        return certify_rule(setup.net, setup.trainer.rule, setup.task, batch)


def _write(found: Certificate, file: Path, picture: Path) -> None:
    make_folder(file.parent)
    write_text(file, json.dumps(found.to_json(), indent=1) + "\n")
    if found.measured is not None:
        from bpfree.lab.certify.picture import plot_dependencies  # with matplotlib

        plot_dependencies(found, picture)
