"""What one does with a run: `bpfree eval`, `plots` and `predict`."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import torch
import typer
from torch import Tensor

from bpfree import api
from bpfree.cli.shell import DataDir, RunArgument, Trust, errors_in_one_line, named_test_split
from bpfree.data import DATASETS
from bpfree.data.dataset import Preprocess
from bpfree.data.files.images import bits_of, decode
from bpfree.data.sets.table import read_features
from bpfree.data.tensors import in_shape, to_tensor
from bpfree.disk.paths import check_regular, open_regular
from bpfree.errors import UserError
from bpfree.runs.config import DataConfig
from bpfree.runs.run import Run
from bpfree.tasks import Classify, Multilabel, Segment


def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[RULE.KEY=VALUE]...", help="Such as rule.steps=50, for inference.")
    ] = None,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Evaluate a run on its test split; prints JSON."""
    with errors_in_one_line():
        loaded = api.load(run, overrides=overrides or [], trust=trust)
        if "data" in loaded.from_python:
            raise UserError(f"{run}: its data came from Python. Evaluate it there: bpfree.load(folder).evaluate(data)")
        loaded = loaded.with_test(named_test_split(loaded, data_dir))
        if loaded.test is None:
            raise UserError(f"data set '{loaded.config.data.name}' has no test split")
        typer.echo(json.dumps(loaded.evaluate()))


def plots(run: RunArgument, data_dir: DataDir = None, trust: Trust = False) -> None:
    """Draw all pictures of a run anew; prints their paths. With data from Python, those that need no samples."""
    with errors_in_one_line():
        loaded = api.load(run, trust=trust)
        if "data" not in loaded.from_python:
            loaded = loaded.with_test(named_test_split(loaded, data_dir))
        for path in loaded.plots():
            typer.echo(path)


def predict(
    run: RunArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, .npy of raw samples, or .csv.")],
    trust: Trust = False,
) -> None:
    """Print class and probability for each image; of a run that reconstructs, the error; else the numbers."""
    with errors_in_one_line():
        loaded = api.load(run, trust=trust)
        scaled = _scales(loaded.config.data)
        reader = loaded.config.data.model_extra or {}
        batches = [(file, _read_samples(file, loaded.preprocess, scaled, reader)) for file in files]
        for file, samples in batches:
            for index, answer in enumerate(_answers(loaded, samples)):
                name = str(file) if len(samples) == 1 else f"{file}[{index}]"
                typer.echo(f"{name}\t{answer}")


def _answers(run: Run, samples: Tensor) -> Iterator[str]:
    """Class and probability of each sample, how far its reconstruction is from it, or the numbers it comes to."""
    if isinstance(run.task, Classify):
        names = run.preprocess.class_names or range(run.preprocess.classes)
        for row in run.predict_proba(samples):
            yield f"{names[int(row.argmax())]}\t{float(row.max()):.4f}"
    elif isinstance(run.task, Multilabel | Segment):
        yield from _labels(run, samples)
    elif not run.task.rebuilds:
        predicted = run.predict(samples)
        for row in predicted[:, -1] if run.task.per_step else predicted:  # of a sequence, what comes next
            yield " ".join(f"{value:.6g}" for value in row.reshape(-1).tolist())
    else:
        errors = run.predict(samples) - run.preprocess.target(samples)
        for error in errors.flatten(1).square().mean(1):
            yield f"mse {float(error):.6f}"


def _labels(run: Run, samples: Tensor) -> Iterator[str]:
    """The labels that are true of each sample with their probabilities, or the share of each class in its pixels."""
    names = [str(name) for name in run.preprocess.class_names or range(run.preprocess.classes)]
    if isinstance(run.task, Multilabel):
        shares = run.predict_proba(samples)
        shown = shares > 0.5
    else:
        predicted = run.predict(samples).flatten(1)  # [N, H*W]
        shares = torch.stack([(predicted == label).float().mean(1) for label in range(len(names))], 1)
        shown = shares > 0
    for row, own in zip(shares.tolist(), shown.tolist(), strict=True):
        told = [f"{name} {share:.4f}" for name, share, there in zip(names, row, own, strict=True) if there]
        yield "\t".join(told) or "-"


def _scales(data: DataConfig) -> bool:
    """Whether the reader of a run's data brings images to a size; then others are brought to it likewise."""
    known = inspect.signature(DATASETS[data.name]).parameters if data.name in DATASETS else {}
    return "size" in known and (data.model_extra or {}).get("size", known["size"].default) is not None


def _read_samples(file: Path, preprocess: Preprocess, scaled: bool, reader: Mapping[str, Any]) -> Tensor:
    """[N, ...] raw samples of the run's shape.

    Args:
        file: to read.
        preprocess: of the run.
        scaled: whether an image is brought to the run's size.
        reader: options of the reader of the run's data, such as how many bits its images have.

    Raises:
        UserError: the file cannot be read or is of another shape.
    """
    shape = preprocess.shape
    if file.suffix == ".npy":
        values = to_tensor(_read_npy(file), str(file))
        is_grey = len(shape) == 3 and shape[0] == 1
        if tuple(values.shape) == shape or (is_grey and tuple(values.shape) == shape[1:]):
            values = values.reshape(1, *shape)
        values = in_shape(values, shape) if values.dim() else values
        if values.dim() == 0 or tuple(values.shape[1:]) != shape:
            raise UserError(
                f"{file}: found the shape {list(values.shape)}, allowed: {list(shape)}, or [N, ...] of those"
            )
        return values
    if preprocess.columns is not None:
        return read_features(file, preprocess.columns, reader.get("decimal", "."), reader.get("delimiter"))
    if scaled:
        channels, height, width = shape
        bits = reader.get("bits")
        return decode(file, channels=channels, size=(height, width), what=str(file), bits=bits).unsqueeze(0)
    return _read_image(file, preprocess, reader.get("bits"))


def _read_npy(file: Path) -> Any:
    try:
        with open_regular(file) as opened:  # numpy would leave a broken one open
            values = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{file}: not a .npy array of numbers ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise UserError(f"{file}: not a .npy array of numbers")
    return values if values.dtype.kind == "i" else values.astype(np.float32)


def _read_image(file: Path, preprocess: Preprocess, bits: int | None) -> Tensor:
    from PIL import Image

    if len(preprocess.shape) != 3 or preprocess.shape[0] not in (1, 3):
        raise UserError(f"{file}: the run takes samples of shape {list(preprocess.shape)}, no images. Give .npy files")
    if preprocess.dtype != "uint8":
        raise UserError(
            f"{file}: the run was trained on {preprocess.dtype} samples, whose scale an image file does not tell. Give "
            ".npy files"
        )
    channels, height, width = preprocess.shape
    check_regular(file)
    try:
        with Image.open(file) as image:
            if image.size != (width, height):
                raise UserError(
                    f"{file}: found an image of {image.width}x{image.height} pixels, allowed: {width}x{height} as in "
                    "training. Resize it first"
                )
            pixels = _pixels(image, "L" if channels == 1 else "RGB", file, bits)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's words for damage
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: no image that Pillow can read ({error})") from error
    samples = torch.from_numpy(pixels).reshape(1, height, width, channels).permute(0, 3, 1, 2)
    return samples * (preprocess.white / 255.0)


def _pixels(image: Any, mode: str, file: Path, bits: int | None) -> Any:
    """Values 0..255, float32."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        white = 2 ** bits_of(int(values.max()), str(file), bits) - 1
        return values.astype(np.float32)[..., None].repeat(len(mode), 2) * (255 / white)
    if image.mode in ("I", "F"):
        raise UserError(f"{file}: found pixels of mode {image.mode}, allowed: 8 or 16 bits a channel")
    return np.asarray(image.convert(mode), dtype=np.float32)
