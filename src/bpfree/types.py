"""The nouns that everything shares.

Shape legend, used in comments and docstrings throughout:
    B batch, D output or target width, C classes, E label embedding, H hidden width,
    P population, N parameters, L segments, T diffusion steps.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bpfree.inputs import Inputs, apply, main_input, one_tensor

ALL_TASKS = ("classify", "reconstruct", "regress", "sequence")
"""Names in `bpfree.tasks.TASKS`, for rules to say which they can do."""

Scalars = dict[str, Tensor]
"""Detached 0-d tensors by name. They stay on the device: reading one would stall a GPU."""


class Batch(NamedTuple):
    """One minibatch, preprocessed and on the device."""

    x: Inputs  # [B, ...], or several tensors [B, ...]; see `bpfree.inputs`
    y: Tensor  # [B] class index, or [B, ...] what to rebuild or to predict, in the net's units

    @property
    def tensor(self) -> Tensor:
        """The samples [B, ...], for code that works with a single tensor.

        Raises:
            UserError: the net takes several tensors.
        """
        return one_tensor(self.x)

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return main_input(self.x).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the samples; torch's default where they are integers, such as tokens."""
        x = main_input(self.x)
        return x.dtype if x.is_floating_point() else torch.get_default_dtype()

    def first(self, samples: int) -> "Batch":
        """The first samples."""
        return Batch(apply(self.x, lambda t: t[:samples]), self.y[:samples])

    def to(self, device: torch.device | str) -> "Batch":
        """The same samples and targets on another device; the batch itself where it lies there already."""
        return Batch(apply(self.x, lambda t: t.to(device)), self.y.to(device))


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
