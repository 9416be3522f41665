"""A step of a local rule: what its segments share while it runs."""

from collections.abc import Callable

import torch
from torch import Tensor

from bpfree.types import Batch, Task


class Step:
    """A step of a local rule, which computes only once what several segments need.

    Args:
        task: gives the target.
        batch: the samples and labels.
    """

    def __init__(self, task: Task, batch: Batch) -> None:
        self.batch = batch
        self._task = task
        self._target: Tensor | None = None
        self._one: Tensor | None = None
        self._made: dict[Callable[[Tensor], Tensor], tuple[Tensor, Tensor]] = {}

    @property
    def target(self) -> Tensor:
        """The target of the batch, [B, D]."""
        if self._target is None:
            self._target = self._task.target(self.batch)
        return self._target

    def is_target(self, signal: Tensor) -> bool:
        """Return True if a signal is the target itself, and not something computed from it."""
        return signal is self._target

    def one_like(self, loss: Tensor) -> Tensor:
        """Return 1 in the type of a loss, 0-d: the gradient with which its backward pass begins."""
        if self._one is None or self._one.dtype != loss.dtype or self._one.device != loss.device:
            self._one = torch.ones_like(loss)  # made once: autograd would make one for each segment
        return self._one

    def once(self, make: Callable[[Tensor], Tensor], signal: Tensor) -> Tensor:
        """Return make(signal); it is computed again only if the signal is another tensor than before."""
        before = self._made.get(make)
        if before is None or before[0] is not signal:
            before = self._made[make] = (signal, make(signal))
        return before[1]
