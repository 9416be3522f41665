"""The commands `bpfree eval`, `plots` and `predict`, which use a trained run."""

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
from bpfree.data.files.images import bits_of, decode
from bpfree.data.preprocess import Preprocess
from bpfree.data.sets.table import read_features
from bpfree.data.tensors import in_shape, to_tensor
from bpfree.data.vocabulary import Vocabulary
from bpfree.disk.paths import check_regular, open_regular
from bpfree.errors import UserError
from bpfree.runs.data_config import DataConfig
from bpfree.runs.run import Run
from bpfree.tasks import Classify, Multilabel, Segment


def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RULE.KEY=VALUE]...", help="Options of the rule for inference, such as rule.steps=50."),
    ] = None,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Evaluate a run on its test split, and print the metrics as JSON.

    \b
    Examples:
      bpfree eval runs/digits-dfa
      bpfree eval runs/mnist-noprop_dt rule.steps=50
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        loaded = api.load(run, overrides=overrides or [], trust=trust)
        if "data" in loaded.from_python:
            raise UserError(
                f"{run}: the data of the run came from Python. Evaluate it in Python: "
                "bpfree.load(folder).evaluate(data)"
            )
        loaded = loaded.with_test(named_test_split(loaded, data_dir))
        if loaded.test is None:
            raise UserError(f"data set '{loaded.config.data.name}' has no test split")
        typer.echo(json.dumps(loaded.evaluate()))


def plots(run: RunArgument, data_dir: DataDir = None, trust: Trust = False) -> None:
    """Draw all pictures of a run again, and print their paths.

    If the data of the run came from Python, only the pictures that need no samples are drawn.
    """
    with errors_in_one_line():
        loaded = api.load(run, trust=trust)
        if "data" not in loaded.from_python:  # data from Python are not stored in the folder
            loaded = loaded.with_test(named_test_split(loaded, data_dir))
        for path in loaded.plots():
            typer.echo(path)


def predict(
    run: RunArgument,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Images, .npy files of raw samples, .csv or .txt files.")
    ],
    trust: Trust = False,
) -> None:
    """Print the predictions of a run for files, one sample on each line.

    A classifier prints the class and its probability, a run that reconstructs its mean squared error, and a regression
    the predicted numbers. In a .txt file each line is a sample, for a run that was trained on texts with a class each.

    \b
    Examples:
      bpfree predict runs/mnist-dfa seven.png three.png
      bpfree predict runs/digits-dfa samples.npy
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        loaded = api.load(run, trust=trust)
        scaled = _scales(loaded.config.data)
        reader = loaded.config.data.model_extra or {}
        if missing := [str(file) for file in files if not file.exists()]:
            raise UserError(
                f"FILE: found {missing[0]}, which does not exist, allowed: an image, a .npy, .csv or .txt file"
            )
        # All files are read before the first line is printed: a file that cannot be read leaves no half output.
        batches = [(file, _read_samples(file, loaded.preprocess, scaled, reader)) for file in files]
        for file, samples in batches:
            for index, prediction in enumerate(_predictions(loaded, samples)):
                name = str(file) if len(samples) == 1 else f"{file}[{index}]"
                typer.echo(f"{name}\t{prediction}")


def _predictions(run: Run, samples: Tensor) -> Iterator[str]:
    """Yield the prediction for each sample as text: its class and probability, its error, or its numbers.

    Args:
        run: a trained run.
        samples: raw samples [N, ...].
    """
    if isinstance(run.task, Classify):
        names = run.preprocess.class_texts
        for row in run.predict_proba(samples):
            yield f"{names[int(row.argmax())]}\t{float(row.max()):.4f}"
    elif isinstance(run.task, Multilabel | Segment):
        yield from _labels(run, samples)
    elif not run.task.rebuilds:
        predicted = run.predict(samples)
        for row in predicted[:, -1] if run.task.per_step else predicted:  # a sequence: its next value
            yield " ".join(f"{value:.6g}" for value in row.reshape(-1).tolist())
    else:
        errors = run.predict(samples) - run.preprocess.target(samples)
        for error in errors.flatten(1).square().mean(1):
            yield f"mse {float(error):.6f}"


def _labels(run: Run, samples: Tensor) -> Iterator[str]:
    """Yield for each sample its labels with their probabilities, or its classes with their share of the pixels.

    Args:
        run: a run with the task multilabel or segment.
        samples: raw samples [N, ...].
    """
    names = run.preprocess.class_texts
    if isinstance(run.task, Multilabel):
        shares = run.predict_proba(samples)
        shown = shares > 0.5
    else:
        predicted = run.predict(samples).flatten(1)  # [N, H*W]
        shares = torch.stack([(predicted == label).float().mean(1) for label in range(len(names))], 1)
        shown = shares > 0
    for row, flags in zip(shares.tolist(), shown.tolist(), strict=True):
        labels = [f"{name} {share:.4f}" for name, share, is_shown in zip(names, row, flags, strict=True) if is_shown]
        yield "\t".join(labels) or "-"


def _scales(data: DataConfig) -> bool:
    """Return True if the reader of a run's data resizes images; then images to predict are resized in the same way."""
    options = inspect.signature(DATASETS[data.name]).parameters if data.name in DATASETS else {}
    return "size" in options and (data.model_extra or {}).get("size", options["size"].default) is not None


def _read_samples(file: Path, preprocess: Preprocess, scaled: bool, reader: Mapping[str, Any]) -> Tensor:
    """Read raw samples [N, ...] of the run's shape from an image, a .npy or a .csv file.

    Args:
        file: the file.
        preprocess: the preprocessing of the run, which knows the shape and type of its samples.
        scaled: True if an image is resized to the size of the run's images.
        reader: options of the reader of the run's data, such as the number of bits of its images.

    Raises:
        UserError: the file cannot be read, or its samples have another shape.
    """
    shape = preprocess.shape
    if file.suffix == ".npy":
        values = to_tensor(_read_npy(file), str(file))
        is_grey = len(shape) == 3 and shape[0] == 1
        if tuple(values.shape) == shape or (is_grey and tuple(values.shape) == shape[1:]):
            values = values.reshape(1, *shape)
        values = in_shape(values, shape) if values.dim() else values  # images may have their channels last
        if values.dim() == 0 or tuple(values.shape[1:]) != shape:
            raise UserError(
                f"{file}: found the shape {list(values.shape)}, allowed: {list(shape)}, or N samples "
                f"{['N', *shape]}".replace("'", "")
            )
        return values
    if preprocess.vocabulary is not None:
        return _read_lines(file, preprocess.vocabulary, preprocess)
    if preprocess.columns is not None:
        # A table is read with the columns and categories of training, whatever else the file holds.
        return read_features(file, preprocess.columns, reader.get("decimal", "."), reader.get("delimiter"))
    if scaled:
        channels, height, width = shape
        bits = reader.get("bits")
        return decode(file, channels=channels, size=(height, width), what=str(file), bits=bits).unsqueeze(0)
    return _read_image(file, preprocess, reader.get("bits"))


def _read_lines(file: Path, vocabulary: str, preprocess: Preprocess) -> Tensor:
    """Return each line of a text as a sample of tokens [N, T].

    Raises:
        UserError: the run was not trained on texts with a class each, or the file has no line.
    """
    if preprocess.labels.answer_shape:
        raise UserError(f"{file}: the run predicts the next token of a text. Use `bpfree generate`, or give .npy files")
    with open_regular(file) as opened:
        lines = [line.strip() for line in opened.read().splitlines()]
    if not lines:
        raise UserError(f"{file}: found no line, allowed: a text in each line")
    return Vocabulary(vocabulary).padded(lines, preprocess.shape[0])


def _read_npy(file: Path) -> Any:
    """Return the array of numbers in a .npy file; nothing is unpickled."""
    try:
        with open_regular(file) as opened:  # `np.load` does not close a damaged file that it opened itself
            values = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{file}: not a .npy array of numbers ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise UserError(f"{file}: not a .npy array of numbers")
    return values if values.dtype.kind == "i" else values.astype(np.float32)  # torch has no uint16 and no longdouble


def _read_image(file: Path, preprocess: Preprocess, bits: int | None) -> Tensor:
    """Return an image of the run's size as a raw sample [1, C, H, W].

    Args:
        file: the image.
        preprocess: the preprocessing of the run.
        bits: the number of bits of the run's images, if its data name one; None: the largest value tells.

    Raises:
        UserError: the run was not trained on images of 8 or 16 bits, or the file is not an image of the run's size.
    """
    from PIL import Image

    if len(preprocess.shape) != 3 or preprocess.shape[0] not in (1, 3):
        raise UserError(f"{file}: the run takes samples of shape {list(preprocess.shape)}, not images. Give .npy files")
    if preprocess.dtype != "uint8":
        raise UserError(
            f"{file}: the run was trained on {preprocess.dtype} samples, and the pixels of an image file may have "
            "another scale. Give .npy files"
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
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow raises any of these for damaged files
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: found a file that Pillow cannot read as an image ({error})") from error
    samples = torch.from_numpy(pixels).reshape(1, height, width, channels).permute(0, 3, 1, 2)
    return samples * (preprocess.white / 255.0)  # to the scale of training, where white is not 255 for every data set


def _pixels(image: Any, mode: str, file: Path, bits: int | None) -> Any:
    """Return the pixels of an image as float32 from 0 to 255, [H, W] or [H, W, C].

    Args:
        image: an image of Pillow.
        mode: "L" for grey or "RGB".
        file: its file, for errors.
        bits: the number of bits of a 16-bit image whose values are smaller, such as 12; None: the largest value tells.

    Raises:
        UserError: the pixels are floats or 32-bit numbers, whose scale is unknown.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        white = 2 ** bits_of(int(values.max()), str(file), bits) - 1
        return values.astype(np.float32)[..., None].repeat(len(mode), 2) * (255 / white)
    if image.mode in ("I", "F"):
        raise UserError(f"{file}: found pixels of mode {image.mode}, allowed: 8 or 16 bits a channel")
    return np.asarray(image.convert(mode), dtype=np.float32)
