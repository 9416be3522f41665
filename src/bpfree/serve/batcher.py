"""A queue of one run: requests that come at nearly the same time are computed in one batch.

All runs compute in one thread, the worker: torch has settings of the whole process, and two nets at once would not be
faster on the same cores.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

from torch import Tensor

from bpfree.inputs import Inputs, concatenate, count
from bpfree.serve.limits import Limits, RequestError


class _Waiting(NamedTuple):
    """A request that waits for its turn."""

    x: Inputs
    answer: "asyncio.Future[Tensor]"


class Batcher:
    """Answer requests to one run in batches.

    Args:
        compute: returns the outputs [N, D] for raw samples [N, ...]; called in the worker.
        worker: runs one function at a time.
        limits: the size of a batch, and how long its first request waits for others.
        merges: False to compute each request alone.
        observe: called with the number of samples and the seconds of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], Tensor],
        worker: Executor,
        limits: Limits,
        *,
        merges: bool,
        observe: Callable[[int, float], object] = lambda samples, seconds: None,
    ) -> None:
        self.compute = compute
        self.worker = worker
        self.limits = limits
        self.merges = merges
        self.observe = observe
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0  # samples
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, x: Inputs) -> Tensor:
        """Return the outputs [N, D] for raw samples [N, ...].

        Args:
            x: samples that fit the run.

        Raises:
            RequestError: too many samples wait already.
        """
        if self._waiting + count(x) > self.limits.waiting:
            raise RequestError(503, f"busy: {self._waiting} samples wait for this run. Try again in a second")
        waiting = _Waiting(x, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._waiting += count(x)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await waiting.answer

    async def _work(self) -> None:
        """Compute batches until the queue is empty."""
        while self._queue:
            if self.merges and self._waiting < self.limits.batch:
                await asyncio.sleep(self.limits.collect_seconds)
            batch = self._take()
            if not batch:
                continue
            start = time.perf_counter()
            try:
                x = concatenate([each.x for each in batch]) if len(batch) > 1 else batch[0].x
                out = await asyncio.get_running_loop().run_in_executor(self.worker, self.compute, x)
            except Exception as error:  # it belongs to the requests, and the queue must go on
                _end(batch, error)
                continue
            self.observe(len(out), time.perf_counter() - start)
            _end(batch, out)

    def _take(self) -> list[_Waiting]:
        """Remove the requests of the next batch from the queue; those that were given up are dropped."""
        taken: list[_Waiting] = []
        size = 0
        while self._queue and (not taken or (self.merges and size + count(self._queue[0].x) <= self.limits.batch)):
            each = self._queue.popleft()
            self._waiting -= count(each.x)
            if not each.answer.done():
                taken.append(each)
                size += count(each.x)
        return taken


def _end(batch: list[_Waiting], result: Tensor | Exception) -> None:
    """Give each request of a batch its outputs, or the error."""
    at = 0
    for each in batch:
        n = count(each.x)
        if not each.answer.done():  # a client may have gone
            if isinstance(result, Exception):
                each.answer.set_exception(result)
            else:
                each.answer.set_result(result[at : at + n])
        at += n
