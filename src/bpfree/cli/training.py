"""`bpfree train`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bpfree import api
from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.errors import DivergedError, UserError
from bpfree.runs import checkpoint
from bpfree.runs.config_file import load_config
from bpfree.runs.folder import LAST, RESULT
from bpfree.runs.run import Run
from bpfree.runs.train import train as train_run
from bpfree.tasks.class_metrics import BY_CLASS


def train(
    config: Annotated[str | None, typer.Argument(help="A YAML file or a shipped config such as digits/dfa.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.epochs=3 rule=backprop.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write. Default: runs/<config>.", parser=path_of("--out"))
    ] = None,
    data_dir: DataDir = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.", parser=path_of("--resume"))
    ] = None,
    trust: Trust = False,
) -> None:
    """Train as a config says, and test. A config of your own may name code of yours; one of a run only with --trust."""
    with errors_in_one_line():
        if resume is not None:
            if config or overrides or out:
                raise UserError(
                    "--resume: goes on as the run's own config says; it takes no CONFIG, KEY=VALUE or --out"
                )
            folder = resume
            start: Callable[[], Run] = partial(api.resume, resume, data_dir, trust=trust)
        else:
            folder, start = _new_run(config, overrides or [], out, data_dir)
    with errors_in_one_line(hint=partial(_how_to_go_on, folder)):
        finished = start()
    _print_result(finished)


def _new_run(
    config: str | None, overrides: list[str], out: Path | None, data_dir: Path | None
) -> tuple[Path, Callable[[], Run]]:
    if config is None:
        raise UserError("CONFIG: none was given. Try `bpfree train digits/dfa`; `bpfree list configs` shows them all")
    loaded = load_config(config, overrides)
    if data_dir is not None:
        loaded.data.dir = str(data_dir.resolve())  # a resume may come from another folder
    folder = out or _free_folder(f"{loaded.data.name}-{loaded.rule['name'].rpartition(':')[2]}")
    return folder, partial(train_run, loaded, out=folder)


def _free_folder(name: str) -> Path:
    runs = Path("runs")
    candidates = (runs / (name if n == 1 else f"{name}-{n}") for n in range(1, 100_000))
    return next(path for path in candidates if not path.exists())


def _how_to_go_on(folder: Path, error: BaseException) -> str:
    """Told when a run ends early, if there is something to go on from."""
    if not checkpoint.exists(folder / LAST) or (folder / RESULT).exists():
        return ""
    if isinstance(error, DivergedError):  # it would diverge again
        return f". The last good checkpoint is kept in {folder}"
    return f". The last good checkpoint is kept; go on with: bpfree train --resume {folder}"


def _print_result(run: Run) -> None:
    result = run.result
    test = "no test split"
    if result["test"]:
        left_out = () if run.config.data.skew else BY_CLASS
        test = f"test {_in_words({k: v for k, v in result['test'].items() if k not in left_out})}"
    for name, metrics in result.get("controls", {}).items():
        typer.echo(
            f"beside it, {name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in sorted(metrics.items()))
        )
    for name, cost in result.get("trackers", {}).items():
        typer.echo(f"watching {name}: {cost['seconds']:.1f} s in {cost['measurements']} measurements")
    typer.echo(f"{result['rule']} on {result['dataset']}: {test}, {result['wall_seconds']:.1f} s. Run: {run.folder}")


def _in_words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
