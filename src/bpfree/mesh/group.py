"""A group of processes that exchange tensors, over torch.distributed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bpfree.errors import UserError

T = TypeVar("T")
_FEW = 16  # processes; with more, each of them would send too many messages to reach all others


class LostProcessError(RuntimeError):
    """Another process of the training has ended, or cannot be reached."""


class Group:
    """Processes that exchange tensors. All of them call the same methods in the same order.

    Args:
        group: a group of torch.distributed; None for all processes.

    Attributes:
        rank: the number of this process within the group, from 0.
        size: the number of processes.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)

    def __repr__(self) -> str:
        return f"Group(rank {self.rank} of {self.size})"

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, which has the same bits on all of them."""
        with _told():
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def start_sum(self, tensor: Tensor) -> Any:
        """Begin `sum_` and return at once; the work that is returned has a method `wait`."""
        with _told():
            return distributed.all_reduce(tensor, group=self._group, async_op=True)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes in the order of their ranks, [size, ...]. They have one shape."""
        found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _told():
            distributed.all_gather(found, tensor.contiguous(), group=self._group)
        return torch.stack(found)

    def joined(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all processes in the order of their ranks.

        Args:
            rows: [counts[rank], ...] of this process.
            counts: the number of rows of each process.
        """
        rows = rows.contiguous()
        if self.size > _FEW:
            most = max(counts)  # a gathering takes tensors of one shape only
            padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
            return torch.cat([part[:n] for part, n in zip(self.gathered(padded), counts, strict=True)])
        # Each process sends its rows to all others at once. A gathering of gloo passes them on from process to process,
        # in two messages each.
        found = rows.new_empty(sum(counts), *rows.shape[1:])
        copies = rows.repeat(self.size, *[1] * (rows.dim() - 1))
        with _told():
            distributed.all_to_all_single(found, copies, list(counts), [len(rows)] * self.size, group=self._group)
        return found

    def broadcast_(self, tensor: Tensor, source: int) -> Tensor:
        """Replace a tensor by that of one process.

        Args:
            tensor: of one shape and type on all processes.
            source: the rank of that process within the group.
        """
        with _told():
            distributed.broadcast(tensor, self._global(source), group=self._group)
        return tensor

    def same(self, value: Any, source: int = 0) -> Any:
        """Return a plain value of one process on all of them.

        Args:
            value: of this process; only that of the source matters.
            source: the rank of that process within the group.
        """
        values = [value]
        with _told():
            distributed.broadcast_object_list(values, self._global(source), group=self._group)
        return values[0]

    def agreed(self, choose: Callable[[], T]) -> T:
        """Return on all processes what a function returns in the first one; the others do not call it.

        Args:
            choose: returns a plain value.

        Raises:
            UserError: the function raised it; then all processes raise it.
        """
        value: Any = None
        wrong: UserError | None = None
        if self.rank == 0:
            try:
                value = choose()
            except UserError as error:
                wrong = error
        value, wrong = self.same((value, wrong))
        if wrong is not None:
            raise wrong
        return value  # type: ignore[no-any-return]

    def all_of(self, value: Any) -> list[Any]:
        """Return the plain values of all processes, in the order of their ranks."""
        values: list[Any] = [None] * self.size
        with _told():
            distributed.all_gather_object(values, value, group=self._group)
        return values

    def start_send(self, tensor: Tensor, to: int) -> Any:
        """Begin to send a tensor to a process, by its rank within the group; see `start_sum`."""
        with _told():
            return distributed.isend(tensor, self._global(to), group=self._group)

    def start_receive(self, tensor: Tensor, source: int) -> Any:
        """Begin to replace a tensor by one that a process sends, by its rank within the group; see `start_sum`."""
        with _told():
            return distributed.irecv(tensor, self._global(source), group=self._group)

    def receive_(self, tensor: Tensor, source: int) -> Tensor:
        """Replace a tensor by the next one that a process sent, by its rank within the group."""
        with _told():
            distributed.recv(tensor, self._global(source), group=self._group)
        return tensor

    def wait(self, work: Any) -> None:
        """Wait for what `start_sum` or `start_send` began."""
        with _told():
            work.wait()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum_(torch.zeros(1))  # on the CPU, where a device waits for nothing

    def _global(self, rank: int) -> int:
        return rank if self._group is None else distributed.get_global_rank(self._group, rank)


@contextmanager
def _told() -> Iterator[None]:
    """Say in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not any(word in text for word in _LOST):
            raise
        raise LostProcessError(
            "another process of this training has ended or cannot be reached. Its own message says why; torchrun "
            "starts the training again from its last checkpoint if it was called with --max-restarts"
        ) from error


_LOST = ("onnection closed", "onnection reset", "onnection refused", "Socket closed", "Timed out", "Broken pipe")
"""Words of torch's errors when a process is gone."""
