"""Training samples for an estimator: an order that their values decide, and sample weights as repetition.

A sample weight says how often a sample occurs in an epoch. So weights mean the same for every rule, also for rules that
do not learn by the task's loss, and a sample of weight 2 is a sample that occurs twice.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.trackers import Record, Tracker
from bpfree.training.trainer import Trainer

Array = NDArray[Any]

_MOST_COPIES = 10  # mean of whole weights up to which samples are copied; more would fill the memory


class Samples(NamedTuple):
    """Training samples in order.

    Attributes:
        x: samples [N, ...].
        y: labels [N] or [N, D].
        origin: numbers that copies of one sample share, int64 [N]; None if no sample has a copy.
        weights: floating [N], if each epoch draws samples in proportion to them; None if each sample occurs once.
    """

    x: Array
    y: Array
    origin: Tensor | None
    weights: Tensor | None


def read_weights(sample_weight: Any, count: int) -> Array:
    """Return sample weights as floating numbers [N]; 1 for each sample if none are given.

    Args:
        sample_weight: an array [N], or None.
        count: N.

    Raises:
        UserError: weights are not N finite numbers from 0 on, or all of them are zero.
    """
    if sample_weight is None:
        return np.ones(count)
    try:
        weights = np.array(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample_weight: found {type(sample_weight).__name__}, allowed: an array of numbers") from error
    if weights.shape != (count,):
        raise UserError(
            f"sample_weight: found the shape {list(weights.shape)}, allowed: [{count}], one for each sample"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError("sample_weight: found negative weights, NaN or infinity, allowed: finite numbers from 0 on")
    if not weights.any():
        raise UserError("sample_weight: all weights are zero, allowed: at least one above zero")
    return weights


def arrange(x: Array, y: Array, weights: Array) -> Samples:
    """Return samples sorted by their bytes, with those of whole weights copied.

    Sorted samples make a training independent of the order of the rows. So a training with weights 1, 2, ... equals, to
    the bit, a training on data that hold the samples so often. Weights that are not whole, or are above 10 in the mean,
    stay weights: each epoch then draws as many samples as there are, in proportion to the weights.

    Args:
        x: samples [N, ...].
        y: labels [N] or [N, D], numbers.
        weights: above 0, [N].

    Example:
        >>> samples = arrange(np.array([[2.0], [1.0]]), np.array([0, 1]), np.array([1.0, 2.0]))
        >>> samples.x.ravel().tolist(), samples.y.tolist(), samples.origin.tolist()
        ([2.0, 1.0, 1.0], [0, 1, 1], [0, 1, 1])
    """
    rows = np.concatenate([_bytes(x), _bytes(y)], axis=1)  # [N, bytes]
    order = np.argsort(rows.view(f"V{rows.shape[1]}").ravel(), kind="stable")
    rows = rows[order]
    origin = np.concatenate([[0], (rows[1:] != rows[:-1]).any(1).cumsum()])
    drawn: Tensor | None = None
    if (weights == np.floor(weights)).all() and weights.mean() <= _MOST_COPIES:
        counts = weights[order].astype(np.int64)
        order, origin = order.repeat(counts), origin.repeat(counts)
    elif weights.min() < weights.max():
        drawn = torch.from_numpy(weights[order])
    has_copies = origin[-1] + 1 < len(origin)
    return Samples(x[order], y[order], torch.from_numpy(origin) if has_copies else None, drawn)


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)


def draw(weights: Tensor, noise: Noise) -> Tensor:
    """Return N positions in order, int64 [N], among which each sample occurs in proportion to its weight.

    A sample that should occur 1.3 times occurs once or twice, by chance: this is systematic sampling.

    Args:
        weights: floating [N], above 0.
        noise: the key of the draw.

    Example:
        >>> draw(torch.tensor([3.0, 0.5, 0.5], dtype=torch.float64), Noise(0)).tolist()
        [0, 0, 1]
    """
    ends = weights.cumsum(0)
    points = torch.arange(len(ends)) + noise.rand(1, dtype=torch.float64)
    return torch.searchsorted(ends / ends[-1] * len(ends), points, right=True).clamp_max(len(ends) - 1)


def draw_of(trainer: Trainer, weights: Tensor, epoch: int) -> Tensor:
    """Return the positions of the samples that an epoch of a training has, int64 [N] on its device.

    Args:
        trainer: its seed decides the draw.
        weights: floating [N], above 0.
        epoch: the number of the epoch, from 0.
    """
    return draw(weights, trainer.noise.fold("sample_weight", epoch)).to(trainer.device)


class Draws(Tracker):
    """Draws the samples of each epoch anew, in proportion to their weights.

    Args:
        weights: floating [N], above 0, for the N training samples.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self._all: tuple[Tensor, Tensor] | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Draw the samples of the first epoch.

        Raises:
            UserError: an option of the training left out some of the samples.
        """
        assert trainer.data is not None
        if len(trainer.data.y) != len(self.weights):
            raise UserError(
                f"sample_weight: found {len(self.weights)} weights, but options left {len(trainer.data.y)} samples, "
                "allowed: whole weights, or a training without the options fraction and skew"
            )
        assert isinstance(trainer.data.x, Tensor)
        self._all = trainer.data.x, trainer.data.y
        self._draw(trainer)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Draw the samples of the next epoch."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        assert trainer.data is not None
        assert self._all is not None
        index = draw_of(trainer, self.weights, trainer.progress.step // len(trainer.data))
        x, y = self._all
        trainer.data.x, trainer.data.y = x[index.to(x.device)], y[index.to(y.device)]
