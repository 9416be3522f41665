"""Torch DataLoaders as data."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bpfree
from bpfree.data import from_python
from bpfree.errors import UserError

X, Y = torch.randn(21, 4, generator=torch.Generator().manual_seed(0)), torch.arange(21) % 3
DATA = TensorDataset(X, Y)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(2), 0


class Counted(Endless):
    def __len__(self):
        return 12


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, 4),
        DataLoader(DATA, 4, shuffle=True),
        DataLoader(DATA, 4, shuffle=True, drop_last=True),
        DataLoader(DATA, 5, shuffle=True, num_workers=1),
        DataLoader(DATA, 4, shuffle=True, collate_fn=torch.utils.data.default_collate),
    ],
    ids=range(5),
)
def test_a_loader_gives_its_data_set_in_order(loader):
    """So that shuffling, which is by key, is the same in every run."""
    data = from_python(loader)
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.train.y, Y)


def test_samplers_of_ones_own_stay():
    chosen = DataLoader(DATA, 2, sampler=[3, 4, 5, 0])
    assert torch.equal(from_python(chosen).train.x, X[[3, 4, 5, 0]])
    often = DataLoader(DATA, 4, sampler=torch.utils.data.RandomSampler(DATA, replacement=True, num_samples=40))
    assert len(from_python(often, classes=3).train.y) == 40


def test_fit_takes_loaders():
    run = bpfree.fit("mlp", DataLoader(DATA, 4), "dfa", test=DataLoader(DATA, 7), epochs=1, validation=0)
    assert run.result["test"]["accuracy"] >= 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless(), 4), r"a DataLoader without a length, which may never end.*torch.cat"),
        (DataLoader(TensorDataset(X), 4), "found batches that are no pairs of tensors, but list"),
        (DataLoader(DATA, 4, collate_fn=lambda items: {"x": 1}), "no pairs of tensors, but dict"),
        (
            DataLoader(DATA, 1, collate_fn=lambda items: (torch.zeros(1, 1 + int(items[0][1])), torch.zeros(1))),
            "one shape",
        ),
        (DataLoader(TensorDataset(X[:0], Y[:0]), 4), "found no samples"),
    ],
    ids=range(5),
)
def test_loaders_that_cannot_work(loader, message):
    with pytest.raises(UserError, match=message):
        from_python(loader)


def test_one_that_says_how_long_it_is_is_taken_at_its_word():
    assert len(from_python(DataLoader(Counted(), 4), classes=2).train.y) == 12
