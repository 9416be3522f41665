"""The way of features through processes, each of which trains some parts of a net. No error comes back.

A process may be several batches ahead of the next one: it need not wait for anything that a later part does. It does
not run further ahead than the messages that may be on their way.
"""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.mesh.group import Group

_ON_THE_WAY = 2  # messages; more would hide longer hiccups of a process, and take memory
_KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
_HEADER = 32  # numbers: type, how many dimensions, their order in memory, and their sizes


class Part(NamedTuple):
    """A part of a net that trains without later parts.

    Attributes:
        cost: what its forward pass takes, in floating-point operations for a sample.
        parameters: what it trains, of the net and of the rule.
        tensors: all that it changes: its parameters and buffers.
        private: those of the tensors that no other part looks at.
    """

    cost: float
    parameters: list[nn.Parameter]
    tensors: list[Tensor]
    private: list[Tensor]


class PassedOn(Exception):  # noqa: N818, it is not an error
    """Ends a forward pass whose later parts run in other processes."""


class Lane:
    """The parts of a net, split into consecutive runs, one for each process.

    Args:
        group: the processes.
        costs: what each part costs, such as its floating-point operations.
        messages: True if the processes send features to each other.

    Attributes:
        group: the processes.
        bounds: the first part and the end of each process.
        first: the first part of this process.
        end: the end of its parts.
        losses: scalars of the parts of this process in the running step.
        stop: True if this process is asked to stop after the running step; the flag travels with the features.
        coming: how many more messages of one form are sure to come. Some of them are waited for ahead of time, which
            saves the time of a message to the other process and back.

    Raises:
        UserError: there are more processes than parts.
    """

    def __init__(self, group: Group, costs: Sequence[float], *, messages: bool) -> None:
        if len(costs) < group.size:
            raise UserError(
                f"mesh: found {group.size} processes for a net of {len(costs)} parts, allowed: at most {len(costs)}. "
                "Use fewer processes, more taps or blocks, or train.mesh.replicas"
            )
        self.group = group
        self.messages = messages
        self.bounds = even_runs(costs, group.size)
        self.first, self.end = self.bounds[group.rank]
        self.losses: dict[str, Tensor] = {}
        self.stop = False
        self.coming = 0
        self._headers: dict[tuple[int, int], Tensor] = {}  # by the other process and the rows of a batch
        self._sent: deque[tuple[Any, Tensor]] = deque()
        self._awaited: deque[tuple[Any, Tensor]] = deque()

    @property
    def is_last(self) -> bool:
        """True if the last part is of this process."""
        return self.group.rank == self.group.size - 1

    def owner(self, part: int) -> int:
        """Return the rank of the process that trains a part."""
        return next(rank for rank, (first, end) in enumerate(self.bounds) if first <= part < end)

    def send(self, features: Tensor, rows: int, to: int) -> None:
        """Send features to another process; wait only if too many messages are on their way.

        Args:
            features: [B, ...], detached.
            rows: the number of samples in the batch, by which both sides know what follows.
            to: the rank of that process.
        """
        # The dimensions as they lie in memory: a layer may round differently if its input lies in another order.
        order = sorted(range(features.dim()), key=features.stride, reverse=True)
        flat = features.permute(order).reshape(-1)
        if (to, rows) not in self._headers:  # the form is the same for every batch of a size
            form = [_KINDS.index(features.dtype), features.dim(), *order, *features.shape]
            header = torch.zeros(_HEADER, dtype=torch.int64, device=features.device)
            header[: len(form)] = torch.tensor(form)
            self._headers[to, rows] = header
            self._post(header, to)
        flag = flat.new_full((1,), float(self.stop))
        self._post(torch.cat([flat, flag]), to)

    def receive(self, rows: int, source: int, device: torch.device) -> Tensor:
        """Return the next features that a process sends, [B, ...], and take over its flag.

        Args:
            rows: the number of samples in the batch.
            source: the rank of that process.
            device: the device of the features.
        """
        if (source, rows) not in self._headers:
            header = torch.zeros(_HEADER, dtype=torch.int64, device=device)
            self._headers[source, rows] = self.group.receive_(header, source).cpu()
        kind, dims, *form = self._headers[source, rows].tolist()
        order, shape = form[:dims], torch.Size(form[dims : 2 * dims])

        def await_one() -> None:
            flat = torch.empty(shape.numel() + 1, dtype=_KINDS[kind], device=device)
            self._awaited.append((self.group.start_receive(flat, source), flat))

        if not self._awaited:
            await_one()
        work, flat = self._awaited.popleft()
        self.coming = max(0, self.coming - 1)
        while len(self._awaited) < min(self.coming, _ON_THE_WAY):
            await_one()
        self.group.wait(work)
        self.stop |= bool(flat[-1])
        placed = flat[:-1].view([shape[d] for d in order])
        return placed.permute([order.index(d) for d in range(dims)])

    def share_last(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by that of the last process; nothing else ever comes back.

        All processes call it in the same steps. It waits until the last process has come to that step.

        Args:
            tensor: of one shape and type on all processes.
        """
        return self.group.broadcast_(tensor, self.group.size - 1)

    def finish(self) -> None:
        """Wait until all messages have arrived."""
        while self._sent:
            self._wait()

    def _post(self, tensor: Tensor, to: int) -> None:
        while len(self._sent) >= _ON_THE_WAY * max(1, len(self._headers)):
            self._wait()
        self._sent.append((self.group.start_send(tensor, to), tensor))  # the tensor must live until it has been sent

    def _wait(self) -> None:
        work, _ = self._sent.popleft()
        self.group.wait(work)


def even_runs(costs: Sequence[float], runs: int) -> list[tuple[int, int]]:
    """Split parts into consecutive runs whose largest cost is as small as possible.

    Args:
        costs: the cost of each part, 0 or more.
        runs: the number of runs, at most that of the parts.

    Returns:
        The first part and the end of each run; no run is empty.

    >>> even_runs([4, 1, 1, 2], 2)
    [(0, 1), (1, 4)]
    """
    total = [0.0, *accumulate(costs)]
    parts = len(costs)
    # best[end]: the smallest possible largest cost of the runs so far, if they end there, and where the last one begins
    best: list[tuple[float, int]] = [(total[end], 0) for end in range(parts + 1)]
    begins: list[list[tuple[float, int]]] = [best]
    for run in range(2, runs + 1):
        best = [
            min(
                ((max(begins[-1][start][0], total[end] - total[start]), start) for start in range(run - 1, end)),
                default=(float("inf"), 0),
            )
            for end in range(parts + 1)
        ]
        begins.append(best)
    bounds, end = [], parts
    for table in reversed(begins):
        start = table[end][1]
        bounds.append((start, end))
        end = start
    return bounds[::-1]
