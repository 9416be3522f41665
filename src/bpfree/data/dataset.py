"""A data set in memory, and what turns its raw values into a net's input."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.noise import Noise


class Split(NamedTuple):
    """Samples and labels of one split."""

    x: Tensor  # [N, ...], uint8 for images
    y: Tensor  # [N], int64

    def take(self, index: Tensor) -> "Split":
        """The samples at the given positions."""
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True)
class Dataset:
    """A data set: raw values, so that a batch alone is ever held as floats.

    Args:
        name: as in the table, or "arrays".
        train: the training split, from which a validation split is carved.
        test: touched by the final evaluation only; None if there is none.
        classes: C.
        white: the raw value of a white pixel, 255 for most images.
    """

    name: str
    train: Split
    test: Split | None
    classes: int
    white: float = 255.0

    def __post_init__(self) -> None:
        _check(self.train, self.classes, f"{self.name} (train)")
        if self.test is not None:
            _check(self.test, self.classes, f"{self.name} (test)")
            if self.test.x.shape[1:] != self.train.x.shape[1:]:
                raise UserError(
                    f"{self.name}: test samples have the shape {list(self.test.x.shape[1:])}, allowed: that of the "
                    f"training samples, {list(self.train.x.shape[1:])}"
                )

    def carve(self, validation: float, seed: int) -> tuple[Split, Split | None]:
        """Train and validation split: a fraction of train, chosen by seed.

        Raises:
            UserError: nothing would be left on one side.
        """
        if validation == 0:
            return self.train, None
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
    if y.dim() != 1 or y.dtype != torch.int64:
        raise UserError(f"{what}: labels have the shape {list(y.shape)} and type {y.dtype}, allowed: [N] of int64")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise UserError(f"{what}: labels run from {low} to {high}, allowed: 0 to {classes - 1} for {classes} classes")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise UserError(f"{what}: samples contain NaN or infinite values, allowed: finite ones")


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
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float
    classes: int
    dtype: str
    limits: tuple[float, float]

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "Preprocess":
        """Statistics of the training samples for uint8; floating values pass as they are."""
        shape = tuple(train.x.shape[1:])
        is_image = train.x.dtype == torch.uint8
        mean, std = _statistics(train.x) if is_image else ((0.0,), (1.0,))
        limits = (0.0, 1.0) if is_image else (float(train.x.min()), float(train.x.max()))
        dtype = str(train.x.dtype).removeprefix("torch.")
        return cls(shape, mean, std, dataset.white, dataset.classes, dtype, limits)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Preprocess":
        """The inverse of `save`.

        Raises:
            UserError: a value is missing.
        """
        try:
            shape, mean, std, (low, high) = (tuple(saved[key]) for key in ("shape", "mean", "std", "limits"))
            return cls(shape, mean, std, saved["white"], saved["classes"], saved["dtype"], (low, high))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint: its preprocessing is damaged ({error})") from error

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
        x = x.to(dtype, copy=True)
        per_channel = (-1, *[1] * (len(self.shape) - 1)) if len(self.mean) > 1 else (1,)
        mean, std = (torch.tensor(v, dtype=dtype, device=x.device).view(per_channel) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)

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


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of uint8 values by histogram: exact, and without a float copy of the data."""
    channels = x.unbind(1) if x.dim() == 4 else (x,)
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in channels:
        histogram = torch.bincount(channel.flatten(), minlength=256).double()
        histogram /= histogram.sum()
        mean = float((histogram * values).sum())
        std = float((histogram * (values - mean) ** 2).sum()) ** 0.5
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)
