"""The command `bpfree compare`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfree.cli import completion
from bpfree.cli.shell import GO_ON, DataDir, Jobs, LauncherName, SlurmOptions, errors_in_one_line, path_of
from bpfree.errors import UserError
from bpfree.screen.loading import loading

if TYPE_CHECKING:
    from bpfree.lab.compare import Comparison

Configs = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG...",
        help="YAML files or shipped configs such as digits/mlp; also KEY=VALUE for all of them.",
        autocompletion=completion.configs_and_changes,
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Also write files for a paper: results.csv, results.tex, and the figures as PDF and SVG.",
        parser=path_of("--export"),
    ),
]
Target = Annotated[
    float | None,
    typer.Option(help="Validation metric to reach, for the column 'time to target'. Default: 95 % of backprop's best."),
]
Controls = Annotated[
    bool,
    typer.Option(
        help="Train control experiments beside the rules, such as a net whose hidden layers stay random, and backprop "
        "with less memory. Plain backprop is always trained."
    ),
]


def compare_rules(
    configs: Configs,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Rules to train on the net and data of each config, such as dfa,eggroll; or all. Default: each config "
            "as it is.",
            autocompletion=completion.rules,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each rule, with different seeds.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison. Default: runs/compare-<config>.", parser=path_of("--out")),
    ] = None,
    jobs: Jobs = None,
    target: Target = None,
    controls: Controls = True,
    export: Export = None,
    launcher: LauncherName = "local",
    slurm: SlurmOptions = None,
    data_dir: DataDir = None,
) -> None:
    """Compare rules with backprop on the same net, data and epochs; write an HTML report.

    \b
    Examples:
      bpfree compare digits/mlp --rules dfa,mono_forward
      bpfree compare mnist/mlp train.epochs=5 --rules all --jobs 8
      bpfree compare mine.yaml other.yaml --export paper
      bpfree compare mnist/mlp --rules all --launcher slurm --slurm partition=gpu --slurm time=60
      bpfree compare mnist/mlp 'net={name: "mynets:ResNet"}' --rules dfa,mono_forward
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with loading("matplotlib"):  # and jinja2, which would slow down the start of every other command
        from bpfree.cli.compared import print_comparison
        from bpfree.lab.compare import compare

    names = [name for name in configs if "=" not in name]
    overrides = [name for name in configs if "=" in name]
    with errors_in_one_line(lambda error: GO_ON if isinstance(error, KeyboardInterrupt) else ""):
        if data_dir is not None:
            # As JSON: the value of an override is YAML, which would read a "#" or ": " in a path as something else.
            overrides.append(f"data.dir={json.dumps(str(data_dir.resolve()))}")
        if not names:
            raise UserError("CONFIG: found none, allowed: one or more, such as digits/mlp")
        chosen = [rule.strip() for rule in (rules or "").split(",") if rule.strip()]
        command = _command(configs, rules, seeds, out, target, controls=controls)
        done = compare(
            names,
            rules=chosen,
            seeds=seeds,
            out=out,
            jobs=jobs,
            target=target,
            overrides=overrides,
            controls=controls,
            command=command,
            launcher=launcher,
            slurm=slurm,
            verbose=True,
        )
        _export(done, export)
    print_comparison(done)
    if done.failed:
        raise typer.Exit(1)


def _export(done: "Comparison", folder: Path | None) -> None:
    """Write files for a paper, if the user gave a folder."""
    if folder is not None:
        done.export(folder)


def _command(
    configs: Sequence[str], rules: str | None, seeds: int, out: Path | None, target: float | None, *, controls: bool
) -> str:
    """Return the command line for the report, without options that fit one machine only (--jobs, --launcher, ...).

    Args:
        configs: configs and overrides, as the user gave them.
        rules: the option --rules, or None.
        seeds: the option --seeds.
        out: the option --out, or None.
        target: the option --target, or None.
        controls: False for the option --no-controls.
    """
    from bpfree.lab.compare.page import command_line

    options = [("--rules", rules), ("--seeds", seeds), ("--out", out), ("--target", target)]
    words = [str(part) for name, value in options if value is not None for part in (name, value)]
    return command_line(["compare", *configs, *words, *([] if controls else ["--no-controls"])])
