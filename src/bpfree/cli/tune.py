"""The command `bpfree tune`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bpfree.cli import completion
from bpfree.cli.shell import DataDir, LauncherName, SlurmOptions, errors_in_one_line, path_of
from bpfree.errors import UserError
from bpfree.lab.tune.plan import Plan, make_plan
from bpfree.screen.loading import loading

if TYPE_CHECKING:
    from bpfree.lab.tune.results import Tuned

_SHOWN = 10  # trials in the table of the best


def tune(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file or a shipped config. Values to search for are markers, see docs/tune.md.",
            autocompletion=completion.configs,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes of the config, such as tune.trials=50 'optimizer.lr={search: log, low: 1e-4, high: 1e-1}'.",
            autocompletion=completion.changes,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study. Default: runs/tune-<dataset>-<rule>.", parser=path_of("--out")),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A database that several machines can reach. Default: a file in --out."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that run trials, each with one thread.")] = 1,
    launcher: LauncherName = "local",
    slurm: SlurmOptions = None,
    data_dir: DataDir = None,
) -> None:
    """Search for the best values of options. The same command goes on with a search, or joins a running one.

    \b
    Examples:
      bpfree tune examples/tune.yaml
      bpfree tune digits/dfa 'optimizer.lr={search: log, low: 1e-4, high: 1e-1}' --workers 4
      bpfree tune mine.yaml --workers 8 --storage URL --launcher slurm --slurm time=240
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with loading("Optuna"):  # and its databases, which takes a while
        from bpfree.lab.jobs.launcher import Launcher
        from bpfree.lab.tune.study import search
        from bpfree.lab.tune.trials_bar import trials_bar

    with errors_in_one_line(hint=_how_to_go_on):
        if config is None:
            raise UserError("CONFIG: found none. Try `bpfree tune examples/tune.yaml`; see docs/tune.md")
        starts = Launcher.of(launcher, slurm)
        plan = make_plan(config, overrides or [], out=out, storage=storage, data_dir=data_dir)
        with trials_bar(plan, verbose=True) as on_progress:
            tuned = search(plan, workers, on_progress, starts)
    _print(tuned, plan)


def _how_to_go_on(error: BaseException) -> str:
    """Return what to do after Ctrl-C; "" after another error."""
    return ". Finished trials are kept. The same command goes on" if isinstance(error, KeyboardInterrupt) else ""


def _print(tuned: "Tuned", plan: Plan) -> None:
    """Print the best trials, the best values for each setting, and the command that trains the best config.

    Args:
        tuned: the result of the search.
        plan: the search; its objective says whether large or small values are good.
    """
    console = Console()
    ranked = sorted(
        (trial for trial in tuned.trials if trial["value"] is not None),
        key=lambda trial: trial["value"],
        reverse=plan.objective.direction == "maximize",
    )
    # A marker within a choice that no trial took does not get a column.
    names = [name for name in plan.markers if any(name in trial["params"] for trial in ranked)]
    rows = [
        [trial["number"], trial["value"], *(trial["params"].get(n, "") for n in names)] for trial in ranked[:_SHOWN]
    ]
    console.print(_table("best trials", ["trial", tuned.metric, *names], rows))
    if any(best["setting"] for best in tuned.settings):
        console.print(_settings_table(tuned, names))
    # The kind says more: trials that were refused, diverged or were stopped by a pruner are all "pruned" for Optuna.
    states = [trial["kind"] or trial["state"] for trial in tuned.trials]
    typer.echo(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    best = tuned.best
    spread = "" if len(best["values"]) == 1 else f", the mean of {', '.join(f'{v:.4f}' for v in best['values'])}"
    typer.echo(f"best: trial {best['number']}, {tuned.metric} {best['value']:.4f}{spread}. Study: {tuned.folder}")
    # Another number of threads adds up floats in another order: the command must repeat the trial to the bit.
    threads = "" if best["threads"] == torch.get_num_threads() else f"OMP_NUM_THREADS={best['threads']} "
    typer.echo(f"train it with: {threads}bpfree train {tuned.folder / 'best.yaml'}")


def _settings_table(tuned: "Tuned", names: Sequence[str]) -> Table:
    """Return the table of the best numbers, such as the learning rate, for each combination of choices.

    Args:
        tuned: the result of the search.
        names: names of the options that were searched.
    """
    settings = [n for n in names if any(n in best["setting"] for best in tuned.settings)]
    values = [n for n in names if n not in settings]
    rows = [
        [
            *(best["setting"].get(n, "") for n in settings),
            *(best["values"].get(n, "") for n in values),
            *(best["value"], best["trial"], best["trials"]),
        ]
        for best in tuned.settings
    ]
    return _table("best values for each setting", [*settings, *values, tuned.metric, "trial", "trials"], rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table with numbers in four digits; long titles break after ".", "/" and "="."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(re.sub("([./=])", r"\1\n", column), overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
