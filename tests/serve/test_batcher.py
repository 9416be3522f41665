"""Requests of the same moment are computed together, and each gets its own answer."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bpfree.errors import UserError
from bpfree.serve.batcher import Batcher
from bpfree.serve.limits import Limits, RequestError


def ask(batcher, sizes):
    """The answers for requests of some sizes, all at the same moment."""

    async def together():
        requests = [batcher(torch.full((n, 1), float(number))) for number, n in enumerate(sizes)]
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(together())


@pytest.fixture
def worker():
    with ThreadPoolExecutor(1) as worker:
        yield worker


@pytest.mark.parametrize(("merges", "batches"), [(True, [6]), (False, [1, 2, 3])])
def test_each_request_gets_its_rows(worker, merges, batches):
    seen = []
    batcher = Batcher(lambda x: 2 * x, worker, Limits(), merges=merges, observe=lambda n, seconds: seen.append(n))
    answers = ask(batcher, [1, 2, 3])
    assert [answer.flatten().tolist() for answer in answers] == [[0.0], [2.0, 2.0], [4.0, 4.0, 4.0]]
    assert seen == batches


def test_a_batch_is_not_larger_than_its_limit(worker):
    seen = []
    batcher = Batcher(lambda x: x, worker, Limits(batch=4), merges=True, observe=lambda n, seconds: seen.append(n))
    ask(batcher, [3, 3, 1, 9, 1])
    assert seen == [3, 4, 9, 1], "a request of more samples than a batch is computed alone"


def test_too_many_samples_are_refused_at_once(worker):
    batcher = Batcher(lambda x: x, worker, Limits(waiting=5), merges=True)
    first, second = ask(batcher, [4, 2])
    assert len(first) == 4
    assert isinstance(second, RequestError)
    assert second.status == 503
    assert len(ask(batcher, [5])[0]) == 5, "the queue is empty again"


def test_an_error_belongs_to_its_batch_alone(worker):
    def fail_on_ones(x):
        if (x == 1).any():
            raise UserError("no ones")
        return x

    batcher = Batcher(fail_on_ones, worker, Limits(), merges=False)
    zero, one, two = ask(batcher, [1, 1, 1])
    assert (float(zero), float(two)) == (0, 2)
    assert isinstance(one, UserError)


def test_a_request_that_was_given_up_is_not_computed(worker):
    sizes, held = [], threading.Event()

    def compute(x):
        held.wait(5)
        sizes.append(len(x))
        return x

    batcher = Batcher(compute, worker, Limits(collect_seconds=0), merges=False)

    async def give_up():
        first = asyncio.create_task(batcher(torch.zeros(1, 1)))
        second = asyncio.create_task(batcher(torch.zeros(2, 1)))
        await asyncio.sleep(0.05)
        second.cancel()
        held.set()
        await first
        return await batcher(torch.zeros(3, 1))

    start = time.monotonic()
    assert len(asyncio.run(give_up())) == 3
    assert sizes == [1, 3]
    assert time.monotonic() - start < 5
