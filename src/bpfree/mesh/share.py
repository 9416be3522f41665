"""The part of a batch that a process computes, and what its samples need of the others.

A rule computes on the rows of its own process. Where samples of a batch are compared with each other, or numbers are
drawn for a whole batch, the functions of this module give what one process with the whole batch would have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.mesh.group import Group


class Share(NamedTuple):
    """The rows start, ..., stop - 1 of a batch of `total` rows, which this process computes.

    Attributes:
        group: the processes that share the batch.
        start: the first row.
        stop: the end of the rows.
        total: B, the rows of the whole batch.
    """

    group: Group
    start: int
    stop: int
    total: int

    @classmethod
    def of(cls, group: Group, total: int) -> "Share":
        """Return the share of this process in a batch; shares differ by one row at most.

        Args:
            group: the processes that share the batch.
            total: B.

        Raises:
            UserError: there are fewer samples than processes.
        """
        if total < group.size:
            raise UserError(
                f"mesh: found a batch of {total} samples for {group.size} processes, allowed: at least one sample for "
                "each. Use a larger data.batch_size, or fewer processes"
            )
        return cls(group, *cls._bounds(group.rank, group.size, total), total)

    @staticmethod
    def _bounds(rank: int, size: int, total: int) -> tuple[int, int]:
        return total * rank // size, total * (rank + 1) // size

    @property
    def rows(self) -> slice:
        """The rows of this process, as an index of the whole batch."""
        return slice(self.start, self.stop)

    @property
    def weight(self) -> float:
        """The part of the whole batch that the rows of this process are. The sum over the processes is 1."""
        return (self.stop - self.start) / self.total

    @property
    def counts(self) -> list[int]:
        """The number of rows of each process."""
        bounds = (self._bounds(rank, self.group.size, self.total) for rank in range(self.group.size))
        return [stop - start for start, stop in bounds]

    def narrowed(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """Return the rows of this process.

        Args:
            drawn: a tensor with k * B rows in a dimension: k copies of a batch, one after the other.
            dim: the dimension.
        """
        if drawn.shape[dim] == self.total:
            return drawn.narrow(dim, self.start, self.stop - self.start)
        shape = drawn.shape
        copies = drawn.reshape(*shape[:dim], -1, self.total, *shape[dim + 1 :])
        return copies.narrow(dim + 1, self.start, self.stop - self.start).flatten(dim, dim + 1)

    def widened(self, rows: int) -> int | None:
        """Return k * B for k copies of the rows of this process; None if `rows` is not a multiple of them."""
        copies, rest = divmod(rows, self.stop - self.start)
        return None if rest or not copies else copies * self.total

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the whole batch of a value that is a mean over the rows of each process."""
        return self.group.sum_(value * self.weight)


_share: ContextVar[Share | None] = ContextVar("share", default=None)


def share_of_batch() -> Share | None:
    """Return the share of this process in the running step; None if it computes whole batches."""
    return _share.get()


@contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """Let `share_of_batch` return a share inside the block; None for whole batches.

    Args:
        share: the share.
    """
    before = _share.set(share)
    try:
        yield
    finally:
        _share.reset(before)


def drawn_for_samples(make: Callable[[int], Tensor], rows: int, dim: int = 0) -> Tensor:
    """Draw random numbers for samples, so that each sample has the same ones for any number of processes.

    Args:
        make: draws a tensor with a number of rows. It is called with that of the whole batch.
        rows: the rows of this process: its samples, or several copies of them.
        dim: the dimension of the rows in what is drawn.

    Returns:
        The rows of this process.
    """
    share = share_of_batch()
    if share is None or (total := share.widened(rows)) is None:
        return make(rows)
    return share.narrowed(make(total), dim)


def whole(x: Tensor) -> Tensor:
    """Return the rows of the whole batch, with the gradient of this process's own rows.

    The gradient is scaled so that the average over the processes, weighted by their rows, is the gradient of a loss of
    the whole batch.

    Args:
        x: the rows of this process, [b, ...].
    """
    share = share_of_batch()
    return x if share is None else _Whole.apply(x, share)  # type: ignore[no-untyped-call]


def summed(x: Tensor) -> Tensor:
    """Return a sum over samples, detached, as the sum over the whole batch.

    Args:
        x: the sum over the rows of this process.
    """
    share = share_of_batch()
    return x if share is None else share.group.sum_(x.detach().clone())


class _Whole(torch.autograd.Function):
    """Join the rows of all processes; back goes what belongs to the own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.group.joined(x, share.counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        share: Share = ctx.share
        # Each process has the same loss of the whole batch, and its gradients are weighted by its rows later.
        return share.narrowed(grads[0]) / share.weight, None
