"""The order of samples that are read well only beside their neighbours: keyed, mixed, and few blocks for each part."""

from pathlib import Path

import pytest
import torch

from bpfree.data import Batches, Dataset, Labels, Preprocess, Split
from bpfree.data.files.rows import Blocks, Rows
from bpfree.data.order import local_order
from bpfree.data.statistics import SAMPLE, for_statistics
from bpfree.noise import Noise

N, BLOCK, WINDOW, B = 5000, 50, 1000, 64


class Counted:
    """Samples as if they were slow to read: sample i is the number i. It keeps which blocks were read."""

    path, shape, dtype = Path("counted"), (1,), torch.float64

    def __init__(self, of, window=WINDOW):
        self.blocks = Blocks(of, window)
        self.seen = []

    def read(self, index):
        self.seen.append(self.blocks.of[index].unique().tolist())
        return index.double().unsqueeze(1)


def blocks(n=N):
    return torch.arange(n) // BLOCK


def split_of(of, window=WINDOW):
    source = Counted(of, window)
    return source, Split(Rows(source, torch.arange(len(of))), torch.arange(len(of)) % 3)


def batches_of(split, **options):
    preprocess = Preprocess.of(Dataset("x", split, None, Labels(3)), split)
    return Batches(split, preprocess, B, dtype=torch.float64, **{"seed": 0, **options})


def numbers(batches, *args, **options):
    return [batch.x.flatten().long() for batch in batches.epoch(*args, **options)]


@pytest.mark.parametrize("n", [1, 63, 64, N, N + 17])
@pytest.mark.parametrize("window", [1, WINDOW, 10 * N])
def test_every_sample_comes_once(n, window):
    order = local_order(Blocks(blocks(n), window), Noise(0), B)
    assert torch.equal(order.sort().values, torch.arange(n))


def test_the_key_decides():
    orders = [local_order(Blocks(blocks(), WINDOW), Noise(*key), B) for key in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0], orders[1])
    for other in orders[2:]:
        assert (orders[0] == other).double().mean() < 0.01
        assert (orders[0][:B].sort().values == other[:B].sort().values).double().mean() < 0.1


def test_a_window_mixes_its_blocks_and_a_batch_is_sorted_by_block():
    of = blocks()
    order = of[local_order(Blocks(of, WINDOW), Noise(3), B)]
    per_window = WINDOW // BLOCK
    for batch in order.split(B):
        runs = batch.unique_consecutive()
        assert len(runs) == len(runs.unique()), "a block comes once in a batch"
        assert len(runs) <= 2 * per_window
        assert len(batch) < B or len(runs) > per_window / 2
    first, last = ([(order == b).nonzero()[end] for b in range(N // BLOCK)] for end in (0, -1))
    assert max(int(b - a) for a, b in zip(first, last, strict=True)) < WINDOW + 2 * B, "a block is read within a window"


def test_each_batch_has_its_share_of_each_block_of_the_window():
    """Also of blocks that differ in size, and without a place in the files that a batch prefers."""
    sizes = torch.randint(20, 90, (40,), generator=torch.Generator().manual_seed(0))
    of = torch.arange(40).repeat_interleave(sizes)
    batches = of[local_order(Blocks(of, 10**6), Noise(1), B)][: len(of) // B * B].view(-1, B)
    found = torch.stack([torch.bincount(batch, minlength=40) for batch in batches])  # [batches, blocks]
    assert (found - B * sizes / len(of)).abs().max() < 2
    random = of.double().std() / B**0.5
    assert batches.double().mean(1).std() < 1.2 * random


def test_uneven_and_missing_blocks():
    of = torch.repeat_interleave(torch.tensor([0, 2, 5, 6]), torch.tensor([700, 1, 3000, 40]))
    order = local_order(Blocks(of, 500), Noise(0), B)
    assert torch.equal(order.sort().values, torch.arange(len(of)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(size):
    _, split = split_of(blocks())
    batches = batches_of(split)
    whole = numbers(batches, 2)
    assert len(whole) == N // B
    parts = [numbers(batches, 2, part=(rank, size)) for rank in range(size)]
    assert all(torch.equal(torch.cat(part), batch) for *part, batch in zip(*parts, whole, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(numbers(batches, 2, start=70), whole[70:], strict=True))
    assert not torch.equal(torch.cat(whole), torch.cat(numbers(batches, 1)))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_part_reads_its_share_of_the_blocks(size):
    """A block is read by the process that needs it and by a neighbour, not by all; and not again and again."""
    read = []
    for rank in range(size):
        source, split = split_of(blocks())
        batches = batches_of(split)
        source.seen.clear()
        numbers(batches, part=(rank, size))
        # As a source that keeps the blocks of the last batches: a block counts when it comes into use.
        seen = [set(found) for found in source.seen]
        read.append(sum(len(now - set().union(*seen[max(i - 8, 0) : i])) for i, now in enumerate(seen)))
    ideal = N / BLOCK
    borders = (size - 1) * N / WINDOW
    assert sum(read) <= ideal + 2 * borders
    assert max(read) <= ideal / size + 2 * N / WINDOW


def test_batches_without_a_seed_come_in_order():
    _, split = split_of(blocks(130))
    assert torch.cat(numbers(batches_of(split, seed=None))).tolist() == list(range(130))


def test_a_validation_split_shares_nothing_and_keeps_the_blocks():
    _, split = split_of(blocks())
    train, validation = Dataset("x", split, None, Labels(3)).carve(0.2, 0)
    assert torch.equal(train.x.blocks.of, train.x.positions // BLOCK)
    found = [set(torch.cat(numbers(batches_of(part))).tolist()) for part in (train, validation)]
    assert not found[0] & found[1]


def test_statistics_read_few_blocks():
    n = 20 * SAMPLE
    source, split = split_of(blocks(n), window=n)
    chosen = for_statistics(split.x)
    assert len(chosen) == SAMPLE
    assert len(chosen.blocks.of.unique()) <= 1.1 * SAMPLE / BLOCK
    assert torch.equal(chosen.positions, for_statistics(split.x).positions)
    Preprocess.of(Dataset("x", split, None, Labels(3)), split)
    assert len({block for seen in source.seen for block in seen}) <= 1.1 * SAMPLE / BLOCK + 1
    few = split_of(blocks(100))[1].x
    assert for_statistics(few) is few
