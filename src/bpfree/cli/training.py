"""The command `bpfree train`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bpfree import api
from bpfree.cli import completion, several
from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.errors import DivergedError, UserError
from bpfree.mesh import Group, launched
from bpfree.mesh.job import note, noted
from bpfree.runs import checkpoint, folder
from bpfree.runs.config import Config
from bpfree.runs.config_file import load_config
from bpfree.runs.run import Run
from bpfree.runs.train import train as train_run
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.training.together import agreed, world_of


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file or a shipped config such as digits/dfa.",
            autocompletion=completion.configs,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes of the config, such as train.epochs=3 rule=backprop.",
            autocompletion=completion.changes,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder to write. Default: runs/<dataset>-<rule>, with a number if it exists.",
            parser=path_of("--out"),
        ),
    ] = None,
    data_dir: DataDir = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the interrupted run in this folder.", parser=path_of("--resume")),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a net as a config says, test it, and write a run folder.

    A config file of yours may name your own code (module:Class). With --resume, code that the run's config names is
    imported only with --trust.

    \b
    Examples:
      bpfree train digits/dfa
      bpfree train mnist/mlp rule=mono_forward train.epochs=5 --out runs/mine
      bpfree train --resume runs/mine
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        if resume is not None:
            if config or overrides or out:
                raise UserError(
                    "--resume: found also a CONFIG, KEY=VALUE or --out, allowed: --resume RUN alone. The run goes on "
                    "with its own config"
                )
            path = resume
            start: Callable[[], Run] = partial(api.resume, resume, data_dir, trust=trust, verbose=True)
        else:
            path, start = _new_run(config, overrides or [], out, data_dir)
    # Two blocks: only a training that has begun can be resumed.
    with errors_in_one_line(hint=partial(_how_to_go_on, path)):
        finished = start()
    _print_result(finished)


def _new_run(
    config: str | None, overrides: list[str], out: Path | None, data_dir: Path | None
) -> tuple[Path, Callable[[], Run]]:
    """Return the folder of a new run, and a function that trains it.

    The config is read and checked here, so that its errors come without a hint to resume.

    Args:
        config: a YAML file or the name of a shipped config; None if the user gave none.
        overrides: changes `section.key=value`.
        out: the run folder; None for a free name in runs/.
        data_dir: the folder of the data sets; None for that of the config.

    Raises:
        UserError: the config is missing or wrong.
    """
    if config is None:
        raise UserError("CONFIG: found none. Try `bpfree train digits/dfa`; `bpfree list configs` shows all configs")
    loaded = load_config(config, overrides)
    if data_dir is not None:
        loaded.data.dir = str(data_dir.resolve())  # absolute: a resume may be started in another folder
    world = _world(loaded)
    name = f"{loaded.data.name}-{loaded.rule['name'].rpartition(':')[2]}"
    chosen = out or agreed(world, partial(_own_folder, name))
    goes_on = agreed(world, partial(folder.goes_on, chosen))
    return chosen, partial(train_run, loaded, out=chosen, resume=goes_on, verbose=True)


def _world(config: Config) -> Group | None:
    """Return the processes that train together, or raise UserError if several would write one folder."""
    if launched() > 1 and config.train.mesh.name == "none":
        raise UserError(
            f"train.mesh: found none, so each of the {launched()} processes would train by itself and write the same "
            "run folder. Use train.mesh=auto, or start one process"
        )
    return world_of(config.train.mesh.name)


def _own_folder(name: str) -> Path:
    """Return a free folder in runs/, or the one that the same call of torchrun chose before it started again."""
    path = noted("folder") or str(_free_folder(name))
    note("folder", path)
    return Path(path)


def _free_folder(name: str) -> Path:
    """Return a folder in runs/ that does not exist yet: runs/NAME, or else runs/NAME-2, runs/NAME-3, ..."""
    runs = Path("runs")
    # Two commands may find the same free name at once: then the lock of the folder refuses the second one.
    candidates = (runs / (name if n == 1 else f"{name}-{n}") for n in range(1, 100_000))
    return next(path for path in candidates if not path.exists())


def _how_to_go_on(path: Path, error: BaseException) -> str:
    """Return how to resume a run that ended early; "" if it has no checkpoint or is finished.

    Args:
        path: the run folder.
        error: why the run ended.
    """
    if not checkpoint.exists(path / folder.LAST) or (path / folder.RESULT).exists():
        return ""
    if isinstance(error, DivergedError):  # a resume would diverge again
        return f". The last good checkpoint is kept in {path}"
    return f". The last good checkpoint is kept; go on with: {several.command()} train --resume {path}"


def _print_result(run: Run) -> None:
    """Print the controls, the time of the trackers, why the training stopped early, the test metrics and the folder.

    A control is a metric of another output of the rule, such as that of a faster inference.

    Args:
        run: the finished run.
    """
    result = run.result
    test = "no test split"
    if result["test"]:
        # For classes of equal size, balanced accuracy and macro F1 only repeat the accuracy.
        left_out = () if run.config.data.skew else BY_CLASS
        test = f"test {_as_text({k: v for k, v in result['test'].items() if k not in left_out})}"
    for name, metrics in result.get("controls", {}).items():
        typer.echo(
            f"control {name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in sorted(metrics.items()))
        )
    for name, cost in result.get("trackers", {}).items():
        typer.echo(f"tracker {name}: {cost['seconds']:.1f} s in {cost['measurements']} measurements")
    if why := result.get("stopped"):
        typer.echo(f"stopped after {len(run.metrics)} epoch{'s' * (len(run.metrics) != 1)}: {why}")
    typer.echo(f"{result['rule']} on {result['dataset']}: {test}, {result['wall_seconds']:.1f} s. Run: {run.folder}")


def _as_text(metrics: dict[str, float]) -> str:
    """Return metrics as text, such as "accuracy 0.9722, loss 0.1034"."""
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
