"""The body of a request becomes raw samples for a run, or is refused with the reason. Bodies come from anybody."""

from io import BytesIO
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from bpfree.data.columns import Column, encode
from bpfree.data.files.images import decode
from bpfree.data.preprocess import Preprocess
from bpfree.data.tensors import in_shape, to_inputs, to_tensor
from bpfree.disk.plain import parse_json
from bpfree.errors import UserError, shown
from bpfree.inputs import Inputs, count, shapes, tensors_of
from bpfree.runs.run import Run
from bpfree.serve.drawing import to_form
from bpfree.serve.forms import SIDE, Question
from bpfree.serve.limits import RequestError

_PAPER, _THUMB = 0.5, 256  # a page is light if its edge is above this share of white; a photo is read at this size


def read_question(body: bytes) -> Question:
    """Return the question in a JSON body: an object, or a bare array of samples.

    Args:
        body: UTF-8.

    Raises:
        UserError: the body is not JSON, or not a question.
    """
    value = parse_json(body.decode("utf-8", "replace"), "body")
    try:
        return Question.model_validate({"samples": value} if isinstance(value, list) else value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["body", *(str(part) for part in first["loc"][:4])])
        raise UserError(
            f"{where}: found {shown(first['input'])}, allowed: see /openapi.json. {first['msg']}"
        ) from error


def to_samples(question: Question, run: Run, most: int) -> Inputs:
    """Return the raw samples of a question in the form of the run's training data.

    Args:
        question: samples, rows or a drawing.
        run: a trained run.
        most: the largest number of samples.

    Raises:
        UserError: the samples do not fit the run.
        RequestError: there are too many samples.
    """
    if question.rows is not None:
        _refuse_many(len(question.rows), most)
        return of_rows(question.rows, run)
    if question.drawing is not None:
        return of_drawing(_grid(question.drawing), run.preprocess)
    if run.preprocess.inputs:
        samples = to_inputs(question.samples, "samples", lists=True)
    else:
        if isinstance(question.samples, dict):
            form = ", ".join(["N", *map(str, run.preprocess.shape)])
            raise UserError(f"samples: found an object, allowed: an array [{form}]")
        samples = to_tensor(question.samples, "samples")
    _refuse_many(count(samples) if all(t.dim() for t in tensors_of(samples)) else 0, most)
    return fitting(samples, run)


def fitting(samples: Inputs, run: Run) -> Inputs:
    """Return samples as they are, images in the layout of training, or refuse them.

    Args:
        samples: raw samples, at least one.
        run: a trained run.

    Raises:
        UserError: they have another shape or type, or contain NaN.
    """
    if any(not t.dim() or not t.numel() for t in tensors_of(samples)):
        raise UserError(f"samples: found the shape {shapes(samples)}, allowed: at least one sample")
    arranged = in_shape(samples, run.preprocess.shape) if isinstance(samples, Tensor) else samples
    for tensor in tensors_of(arranged):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError("samples: found NaN or infinite values, allowed: finite numbers below 3e38")
    run.preprocess(arranged)  # refuses other shapes and types
    return arranged


def _refuse_many(found: int, most: int) -> None:
    if found > most:
        raise RequestError(413, f"samples: found {found}, allowed: at most {most} in one request. Send them in parts")


def of_rows(rows: list[dict[str, str | float]], run: Run) -> Tensor:
    """Return rows of a table as features [N, F]. Columns that the run does not use are passed over.

    Args:
        rows: the cells of each row, by the titles of the columns.
        run: a run that was trained on a table.

    Raises:
        UserError: the run takes no rows, or a cell is missing or does not fit.
    """
    columns = run.preprocess.columns
    if columns is None:
        raise UserError("rows: found rows of a table, but the run takes samples. Give samples")
    if not rows:
        raise UserError("rows: found none, allowed: at least one")
    decimal = str((run.config.data.model_extra or {}).get("decimal", "."))
    numbered = list(enumerate(rows, 1))
    cells = {column.name: [_cell(row, column, number, decimal) for number, row in numbered] for column in columns}
    return encode(columns, cells, [f"row {number}" for number, _ in numbered], decimal)


def _cell(row: dict[str, str | float], column: Column, number: int, decimal: str) -> str:
    """Return the text of a cell, with the decimal sign of the table."""
    if column.name not in row:
        raise UserError(f"row {number}: column '{column.name}' is missing. Give a value for each column")
    value = row[column.name]
    return value if isinstance(value, str) else f"{value:.17g}".replace(".", decimal)


def _grid(drawing: list[list[float]]) -> Tensor:
    """Return a drawing as a tensor [h, w]."""
    sides = (len(drawing), len(drawing[0]) if drawing else 0)
    if not all(0 < side <= SIDE for side in sides) or any(len(row) != sides[1] for row in drawing):
        raise UserError(f"drawing: found {sides[0]} rows, allowed: 1 to {SIDE} rows of one length, 1 to {SIDE}")
    return torch.tensor(drawing).nan_to_num(0, 1, 0)


def draws(preprocess: Preprocess) -> bool:
    """Return True if a drawing can be put into the form of a run's samples: grey images of moderate size."""
    shape = preprocess.shape
    is_grey = len(shape) == 3 and shape[0] == 1 and not preprocess.inputs and not preprocess.has_tokens
    return is_grey and all(4 <= side <= SIDE for side in shape[1:])


def of_drawing(drawing: Tensor, preprocess: Preprocess) -> Tensor:
    """Return a drawing as a raw sample [1, 1, H, W].

    Args:
        drawing: [h, w] with values from 0 (paper) to 1 (ink).
        preprocess: the preprocessing of a run.

    Raises:
        UserError: the run does not take grey images.
    """
    if not draws(preprocess):
        raise UserError(f"drawing: the run takes samples {list(preprocess.shape)}, not grey images. Give samples")
    low, high = raw_range(preprocess)
    image = to_form(drawing, (preprocess.shape[1], preprocess.shape[2]))
    if preprocess.dtype == "uint8" and preprocess.mean[0] > high / 2:  # dark ink on light paper
        image = 1 - image
    values = low + (high - low) * image
    return (values.round().to(torch.uint8) if preprocess.dtype == "uint8" else values)[None, None]


def raw_range(preprocess: Preprocess) -> tuple[float, float]:
    """Return the raw values of a black and of a white pixel."""
    return (0.0, preprocess.white) if preprocess.dtype == "uint8" else preprocess.limits


def takes_files(preprocess: Preprocess) -> bool:
    """Return True if image files can be read as samples of a run: it was trained on images of bytes."""
    shape = preprocess.shape
    return len(shape) == 3 and shape[0] in (1, 3) and preprocess.dtype == "uint8" and not preprocess.inputs


def of_file(content: bytes, run: Run, *, as_drawing: bool) -> Tensor:
    """Return the image in a file as a raw sample [1, C, H, W].

    Args:
        content: the bytes of the file.
        run: a trained run.
        as_drawing: True to find the ink on its paper, and to put it into the form of the data as a drawing.

    Raises:
        UserError: the run takes no image files, or the file is not an image.
    """
    preprocess = run.preprocess
    if not takes_files(preprocess):
        raise UserError(
            f"image: the run takes {preprocess.dtype} samples {list(preprocess.shape)}, not image files. Give samples"
        )
    if as_drawing and draws(preprocess):
        return of_drawing(ink_of(decode(BytesIO(content), channels=1, size=None, what="image")), preprocess)
    channels, height, width = preprocess.shape
    bits: Any = (run.config.data.model_extra or {}).get("bits")
    pixels = decode(BytesIO(content), channels=channels, size=(height, width), what="image", bits=bits)
    return (pixels * (preprocess.white / 255)).round().to(torch.uint8)[None]


def ink_of(image: Tensor) -> Tensor:
    """Return the ink of a photo of a drawing, from 0 to 1: what differs from the paper at its edge.

    Args:
        image: uint8 [1, h, w].
    """
    light = image.float()[None] / 255
    scale = _THUMB / max(light.shape)
    if scale < 1:
        light = F.interpolate(light, scale_factor=scale, mode="area")
    light = light[0, 0]
    edge = torch.cat([light[0], light[-1], light[:, 0], light[:, -1]]).median()
    ink = (edge - light if edge > _PAPER else light - edge).clamp(0, 1)
    most = ink.max()
    # Shadows and noise of the paper are below a third of the darkest ink.
    return ((ink / most - 0.33) / 0.67).clamp(0, 1) if most > 0 else ink
