"""A data set in memory, and what turns its raw values into a net's input."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bpfree.data.columns import Column, are_numbers, width
from bpfree.data.rows import Rows, chunks
from bpfree.errors import UserError
from bpfree.noise import Noise

_LARGEST_SAMPLE = 1 << 28  # values; of what a run folder says
_MOST_CLASSES = 1 << 24


class Split(NamedTuple):
    """Samples and labels of one split."""

    x: Tensor  # [N, ...], uint8 for images; Rows if they stay in a file
    y: Tensor  # [N], int64; floating numbers [N, ...] where there are no classes

    def take(self, index: Tensor) -> "Split":
        """The samples at the given positions. What is in a file stays there."""
        return Split(self.x.rows(index) if isinstance(self.x, Rows) else self.x[index], self.y[index])

    def slice(self, start: int, count: int) -> "Split":
        """The samples from `start` on. They are not copied."""
        if isinstance(self.x, Rows):
            return self.take(torch.arange(start, start + count))
        return Split(self.x[start : start + count], self.y[start : start + count])


@dataclass(frozen=True)
class Dataset:
    """A data set: raw values, so that a batch alone is ever held as floats.

    Args:
        name: as in the table, or "arrays".
        train: the training split, from which a validation split is carved.
        test: touched by the final evaluation only; None if there is none.
        classes: C; 0 if labels are no classes but numbers.
        white: the raw value of a white pixel, 255 for most images.
        validation: a split of its own, in place of one that is carved from train; None for most.
        class_names: of the C classes, for people to read; None if they are but numbers.
        columns: of a table, what its features are; see `bpfree.data.table`. They are standardised.
        time_step: of sequences, how long a step is, in the unit in which predictions are judged; 1 to count steps.
    """

    name: str
    train: Split
    test: Split | None
    classes: int
    white: float = 255.0
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    time_step: float = 1.0

    def __post_init__(self) -> None:
        _check(self.train, self.classes, f"{self.name} (train)")
        for what, split in (("validation", self.validation), ("test", self.test)):
            if split is None:
                continue
            _check(split, self.classes, f"{self.name} ({what})")
            if split.x.shape[1:] != self.train.x.shape[1:]:
                raise UserError(
                    f"{self.name}: {what} samples have the shape {list(split.x.shape[1:])}, allowed: that of the "
                    f"training samples, {list(self.train.x.shape[1:])}"
                )
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise UserError(f"{self.name}: found {len(self.class_names)} class names, allowed: {self.classes}")

    def carve(self, validation: float, seed: int) -> tuple[Split, Split | None]:
        """Train and validation split: a fraction of train, chosen by seed, unless the data set has one of its own.

        Raises:
            UserError: nothing would be left on one side.
        """
        if self.validation is not None or validation == 0:
            return self.train, self.validation
        n = len(self.train.y)
        held_out = round(validation * n)
        if not 0 < held_out < n:
            raise UserError(
                f"data.validation: found {validation}, which leaves {held_out} of {n} samples for validation. "
                "Allowed: 0, or a fraction that leaves some on both sides"
            )
        order = Noise(seed).fold("validation").permutation(n)
        return self.train.take(order[held_out:].sort().values), self.train.take(order[:held_out].sort().values)


def _check(split: Split, classes: int, what: str) -> None:
    x, y = split
    if len(x) != len(y):
        raise UserError(f"{what}: found {len(x)} samples and {len(y)} labels, allowed: one label for each sample")
    if len(y) == 0:
        raise UserError(f"{what}: found no samples, allowed: at least one")
    _check_labels(y, classes, what)
    refuse_not_finite(x, what)


def refuse_not_finite(x: Tensor, what: str) -> None:
    """Raise UserError if samples [N, ...] contain NaN or infinite values, and say which."""
    if not x.is_floating_point() or not len(x):
        return
    bad = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in chunks(x)])
    if bad.any():
        raise UserError(
            f"{what}: samples contain NaN or infinite values ({int(bad.sum())} of {len(x)} do, the first is number "
            f"{int(bad.nonzero()[0])}, from 0), allowed: finite ones"
        )


def _check_labels(y: Tensor, classes: int, what: str) -> None:
    if classes == 0:
        if not y.is_floating_point() or not bool(y.isfinite().all()):
            raise UserError(
                f"{what}: labels that are no classes are of type {y.dtype}, allowed: finite floating numbers"
            )
        return
    if y.dim() != 1 or y.dtype != torch.int64:
        raise UserError(f"{what}: labels have the shape {list(y.shape)} and type {y.dtype}, allowed: [N] of int64")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise UserError(f"{what}: labels run from {low} to {high}, allowed: 0 to {classes - 1} for {classes} classes")


@dataclass(frozen=True)
class Preprocess:
    """Raw values to input: (x - mean) / std, by channel for images. It is saved with a run, so predictions repeat it.

    Args:
        shape: of one sample.
        mean: one value, or one for each channel, in raw units.
        std: likewise.
        white: the raw value of a white pixel.
        classes: C.
        dtype: of the raw samples, such as "uint8"; integers other than bytes are names (tokens), not quantities.
        limits: smallest and largest value of what is to be rebuilt, if that is the task.
        class_names: of the C classes, for people to read; None if they are but numbers.
        columns: of a table, what its features are.
        answer_shape: of one label.
        answer_mean: of the training labels as numbers, one for each value of the last dimension.
        answer_std: likewise.
        time_step: see `Dataset`.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float
    classes: int
    dtype: str
    limits: tuple[float, float]
    class_names: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    answer_shape: tuple[int, ...] = ()
    answer_mean: tuple[float, ...] = (0.0,)
    answer_std: tuple[float, ...] = (1.0,)
    time_step: float = 1.0

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "Preprocess":
        """Statistics of the training samples for uint8 and numbers in tables; other values pass as they are."""
        shape = tuple(train.x.shape[1:])
        is_image = train.x.dtype == torch.uint8
        mean, std = _statistics(train.x) if is_image else ((0.0,), (1.0,))
        if dataset.columns is not None:
            mean, std = _statistics_of_table(train.x, dataset.columns)
        lows, highs = zip(*((float(part.min()), float(part.max())) for part in chunks(train.x)), strict=True)
        limits = (0.0, 1.0) if is_image else (min(lows), max(highs))
        dtype = str(train.x.dtype).removeprefix("torch.")
        names, columns = dataset.class_names, dataset.columns
        answers = (tuple(train.y.shape[1:]), *_statistics_of_answers(train.y))
        own = (shape, mean, std, dataset.white, dataset.classes, dtype, limits)
        return cls(*own, names, columns, *answers, dataset.time_step)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Preprocess":
        """The inverse of `save`, of values that may be damaged.

        Raises:
            UserError: a value is missing, of the wrong type, or cannot be.
        """
        try:
            loaded = TypeAdapter(cls).validate_python(saved)
            loaded.check()
        except ValueError as error:  # pydantic's among them
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"checkpoint: its preprocessing is damaged ({where}: {first['msg']})") from error
        return loaded

    def check(self) -> None:
        """Raise ValueError for values that no data set has."""
        channels = self.shape[0] if self.shape else 0
        numbers = (*self.mean, *self.std, *self.limits, *self.answer_mean, *self.answer_std, self.white, self.time_step)
        kind = getattr(torch, self.dtype, None)
        names, columns = self.class_names, self.columns
        for fits, what in (
            (self.shape and min(self.shape) > 0 and math.prod(self.shape) <= _LARGEST_SAMPLE, "shape"),
            (len(self.mean) in (1, channels) and len(self.std) == len(self.mean), "mean and std"),
            (all(map(math.isfinite, numbers)), "numbers that are finite"),
            (min((*self.std, *self.answer_std, self.white, self.time_step), default=0) > 0, "std and white above 0"),
            (self.limits[0] <= self.limits[1], "limits"),
            (isinstance(kind, torch.dtype), "dtype"),
            (0 <= self.classes <= _MOST_CLASSES, "classes"),
            (names is None or len(names) == self.classes, "class_names"),
            (columns is None or width(columns) == channels, "columns"),
            (len(self.answer_shape) <= 8 and math.prod((1, *self.answer_shape)) <= _LARGEST_SAMPLE, "answer_shape"),
            (min((1, *self.answer_shape)) > 0 and len(self.answer_mean) == len(self.answer_std) > 0, "answers"),
        ):
            if not fits:
                raise ValueError(f"{what} cannot be so")

    def save(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def __call__(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, ...] raw -> [B, ...] input.

        Raises:
            UserError: samples of another shape than those of training, or no tokens where those were.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"samples have the shape {list(x.shape[1:])}, allowed: {list(self.shape)}, as in training")
        if self.has_tokens:
            if x.is_floating_point():
                raise UserError(f"samples are {x.dtype}, allowed: integers, as in training")
            return x.to(getattr(torch, self.dtype))
        exact = dtype if self.columns is None else torch.float64  # a time in seconds loses its minutes in float32
        x = x.to(exact, copy=True)
        per_channel = (-1, *[1] * (len(self.shape) - 1)) if len(self.mean) > 1 else (1,)
        mean, std = (torch.tensor(v, dtype=exact, device=x.device).view(per_channel) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std).to(dtype)

    def target(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, ...] raw -> what is to be rebuilt of them: images as [0, 1], floating values as they are."""
        return x.to(dtype) / self.white if self.dtype == "uint8" else x.to(dtype)

    @property
    def has_tokens(self) -> bool:
        """Whether samples are names, which pass as they are."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return not dtype.is_floating_point and dtype not in (torch.uint8, torch.bool)

    def blank(self, n: int) -> Tensor:
        """Raw samples [n, ...] of zeros."""
        return torch.zeros(n, *self.shape, dtype=getattr(torch, self.dtype))

    def unlabelled(self, x: Tensor) -> Split:
        """Raw samples [N, ...] with labels of zeros."""
        return Split(x, torch.zeros(len(x), *self.answer_shape, dtype=torch.int64 if self.classes else torch.float32))


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of uint8 values by histogram: exact, and without a float copy of the data."""
    channels = x.shape[1] if x.dim() == 4 else 1
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in chunks(x):
        for count, values in zip(counts, part.unbind(1) if channels > 1 else (part,), strict=True):
            count += torch.bincount(values.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    shares = counts.double() / counts.sum(1, keepdim=True)
    means = [float((share * values).sum()) for share in shares]
    stds = [float((share * (values - mean) ** 2).sum()) ** 0.5 for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(std or 1.0 for std in stds)


def _statistics_of_answers(y: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of labels [N] or [N, ..., D] as numbers, for each of the D."""
    values = y.double().reshape(-1, y.shape[-1] if y.dim() > 1 else 1)
    std = values.std(0, correction=0)
    return tuple(values.mean(0).tolist()), tuple(value or 1.0 for value in std.tolist())


def _statistics_of_table(x: Tensor, columns: Sequence[Column]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature that is a number; 0 and 1 of the others."""
    numeric = are_numbers(columns)
    mean = x.double().mean(0).where(numeric, 0.0)
    std = x.double().std(0, correction=0).where(numeric, 1.0)
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())
