"""The shell door. Knobs live in the config, so there are few verbs and few options; a test freezes them."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bpfree import api, checkpoint
from bpfree._version import __version__
from bpfree.allocator import keep_freed_memory
from bpfree.config import load_config, shipped
from bpfree.data import DATASETS, data_directory
from bpfree.data.dataset import Preprocess, Split
from bpfree.errors import DivergedError, UserError, check_choice
from bpfree.folder import LAST, RESULT
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.run import Run
from bpfree.run import train as train_run
from bpfree.tasks import TASKS, Classify
from bpfree.trackers import TRACKERS

app = typer.Typer(
    help="Train neural networks without end-to-end backpropagation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets are. Default: BPFREE_DATA, else the user cache.")]


@contextmanager
def _told_in_one_line(hint: Callable[[BaseException], str] = lambda _: "") -> Iterator[None]:
    """Errors at a user's hand end the command with one line and exit code 2."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}{hint(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted{hint(error)}", err=True)
        raise typer.Exit(130) from None


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


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A YAML file or a shipped config such as digits/dfa.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.epochs=3 rule=backprop.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write. Default: runs/<config>.")] = None,
    data_dir: DataDir = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
) -> None:
    """Train as a config says, and test."""
    with _told_in_one_line():
        if resume is not None:
            if config or overrides or out:
                raise UserError(
                    "--resume: goes on as the run's own config says; it takes no CONFIG, KEY=VALUE or --out"
                )
            folder = resume
            start: Callable[[], Run] = partial(api.resume, resume, data_dir)
        else:
            folder, start = _new_run(config, overrides or [], out, data_dir)
    with _told_in_one_line(hint=partial(_how_to_go_on, folder)):
        finished = start()
    _print_result(finished)


def _new_run(
    config: str | None, overrides: list[str], out: Path | None, data_dir: Path | None
) -> tuple[Path, Callable[[], Run]]:
    if config is None:
        raise UserError("CONFIG: none was given. Try `bpfree train digits/dfa`; `bpfree list configs` shows them all")
    loaded = load_config(config, overrides)
    if data_dir is not None:
        loaded.data.dir = str(data_dir.expanduser().resolve())  # a resume may come from another folder
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
        test = f"test {_in_words(result['test'])}"
    for name, metrics in result.get("controls", {}).items():
        typer.echo(
            f"beside it, {name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in sorted(metrics.items()))
        )
    for name, cost in result.get("trackers", {}).items():
        typer.echo(f"watching {name}: {cost['seconds']:.1f} s in {cost['measurements']} measurements")
    typer.echo(f"{result['rule']} on {result['dataset']}: {test}, {result['wall_seconds']:.1f} s. Run: {run.folder}")


def _in_words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))


@app.command(name="eval")
def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[RULE.KEY=VALUE]...", help="Such as rule.steps=50, for inference.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Evaluate a run on its test split; prints JSON."""
    with _told_in_one_line():
        loaded = api.load(run, overrides=overrides or [])
        if "data" in loaded.given:
            raise UserError(f"{run}: its data came from Python. Evaluate it there: bpfree.load(folder).evaluate(data)")
        loaded.test = _test_split(loaded, data_dir)
        if loaded.test is None:
            raise UserError(f"data set '{loaded.config.data.name}' has no test split")
        typer.echo(json.dumps(loaded.evaluate()))


@app.command()
def plots(run: RunArgument, data_dir: DataDir = None) -> None:
    """Draw all pictures of a run anew; prints their paths. With data from Python, those that need no samples."""
    with _told_in_one_line():
        loaded = api.load(run)
        if "data" not in loaded.given:
            loaded.test = _test_split(loaded, data_dir)
        for path in loaded.plots():
            typer.echo(path)


def _test_split(run: Run, data_dir: Path | None) -> Split | None:
    """Of the named data set that a run was trained on."""
    return DATASETS[run.config.data.name](data_directory(data_dir or run.config.data.dir)).test


@app.command()
def predict(
    run: RunArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, or .npy arrays of raw samples.")],
) -> None:
    """Print class and probability for each image; of a run that reconstructs, the error."""
    with _told_in_one_line():
        loaded = api.load(run)
        batches = [(file, _read_samples(file, loaded.preprocess)) for file in files]
        for file, samples in batches:
            for index, answer in enumerate(_answers(loaded, samples)):
                name = str(file) if len(samples) == 1 else f"{file}[{index}]"
                typer.echo(f"{name}\t{answer}")


def _answers(run: Run, samples: Tensor) -> Iterator[str]:
    """Class and probability of each sample, or how far its reconstruction is from it."""
    if isinstance(run.task, Classify):
        for row in run.predict_proba(samples):
            yield f"{int(row.argmax())}\t{float(row.max()):.4f}"
    else:
        errors = run.predict(samples) - run.preprocess.target(samples)
        for error in errors.flatten(1).square().mean(1):
            yield f"mse {float(error):.6f}"


def _read_samples(file: Path, preprocess: Preprocess) -> Tensor:
    """[N, ...] raw samples of the run's shape.

    Raises:
        UserError: the file cannot be read or is of another shape.
    """
    shape = preprocess.shape
    if file.suffix == ".npy":
        values = torch.from_numpy(_read_npy(file))
        is_grey = len(shape) == 3 and shape[0] == 1
        if tuple(values.shape) == shape or (is_grey and tuple(values.shape) == shape[1:]):
            values = values.reshape(1, *shape)
        elif is_grey and values.dim() == 3 and tuple(values.shape[1:]) == shape[1:]:
            values = values.unsqueeze(1)
        if values.dim() == 0 or tuple(values.shape[1:]) != shape:
            raise UserError(
                f"{file}: found the shape {list(values.shape)}, allowed: {list(shape)}, or [N, ...] of those"
            )
        return values
    return _read_image(file, preprocess)


def _read_npy(file: Path) -> Any:
    try:
        with open(file, "rb") as opened:  # numpy would leave a broken one open
            values = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{file}: not a .npy array of numbers ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise UserError(f"{file}: not a .npy array of numbers")
    return values if values.dtype.kind == "i" else values.astype(np.float32)


def _read_image(file: Path, preprocess: Preprocess) -> Tensor:
    from PIL import Image

    if len(preprocess.shape) != 3 or preprocess.shape[0] not in (1, 3):
        raise UserError(f"{file}: the run takes samples of shape {list(preprocess.shape)}, no images. Give .npy files")
    if preprocess.dtype != "uint8":
        raise UserError(
            f"{file}: the run was trained on {preprocess.dtype} samples, whose scale an image file does not tell. Give "
            ".npy files"
        )
    channels, height, width = preprocess.shape
    try:
        with Image.open(file) as image:
            if image.size != (width, height):
                raise UserError(
                    f"{file}: found an image of {image.width}x{image.height} pixels, allowed: {width}x{height} as in "
                    "training. Resize it first"
                )
            pixels = _pixels(image, "L" if channels == 1 else "RGB", file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's words for damage
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: no image that Pillow can read ({error})") from error
    samples = torch.from_numpy(pixels).reshape(1, height, width, channels).permute(0, 3, 1, 2)
    return samples * (preprocess.white / 255.0)


def _pixels(image: Any, mode: str, file: Path) -> Any:
    """Values 0..255, float32."""
    if image.mode.startswith("I;16"):
        return np.asarray(image, dtype=np.float32)[..., None].repeat(len(mode), 2) * (255 / 65535)
    if image.mode in ("I", "F"):
        raise UserError(f"{file}: found pixels of mode {image.mode}, allowed: 8 or 16 bits a channel")
    return np.asarray(image.convert(mode), dtype=np.float32)


@app.command(name="list")
def list_names(
    what: Annotated[
        str | None, typer.Argument(metavar="[rules|nets|tasks|datasets|trackers|configs]", help="Default: all.")
    ] = None,
) -> None:
    """Show the names that a config can use."""
    tables: dict[str, dict[str, Any]] = {
        "rules": RULES,
        "nets": NETS,
        "tasks": TASKS,
        "datasets": DATASETS,
        "trackers": TRACKERS,
        "configs": dict.fromkeys(shipped()),
    }
    with _told_in_one_line():
        if what is not None:
            check_choice("list", what, tables)
    console = Console()
    for kind in tables if what is None else [what]:
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for name, thing in tables[kind].items():
            table.add_row(name, *([] if thing is None else [_first_line(thing)]))
        console.print(table)


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def main() -> None:
    """Entry point. Rules and nets of one's own are looked for where the command is given, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    app()
