"""The nouns that everything shares.

Shape legend, used in comments and docstrings throughout:
    B batch, D output or target width, C classes, E label embedding, H hidden width,
    P population, N parameters, L segments, T diffusion steps.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

ALL_TASKS = ("classify", "reconstruct", "regress", "sequence")
"""Names in `bpfree.tasks.TASKS`, for rules to say which they can do."""

Scalars = dict[str, Tensor]
"""Detached 0-d tensors by name. They stay on the device: reading one would stall a GPU."""


class Batch(NamedTuple):
    """One minibatch, preprocessed and on the device."""

    x: Tensor  # [B, ...]
    y: Tensor  # [B] class index, or [B, ...] what to rebuild or to predict, in the net's units


class Task(Protocol):
    """What the net is for: the target, the loss and the figures of merit."""

    @property
    def dim(self) -> int:
        """D, the width of the output."""
        ...

    def target(self, batch: Batch) -> Tensor:
        """[B, D]: one-hot labels, the flat image to rebuild, or numbers; [B*T, D] of answers at each of T steps."""
        ...

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """0-d, the mean over the batch; differentiable in `out`."""
        ...

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Detached means over the batch, among them `loss`."""
        ...


class Epochs(Protocol):
    """Minibatches to pass through again and again, as `bpfree.data.Batches`."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        ...
