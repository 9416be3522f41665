"""Torch DataLoaders as data."""

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import bpfree
from bpfree.data import make_dataset
from bpfree.data.subset import select
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
    data = make_dataset(loader)
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.train.y, Y)


def test_samplers_of_ones_own_stay():
    chosen = DataLoader(DATA, 2, sampler=[3, 4, 5, 0])
    assert torch.equal(make_dataset(chosen).train.x, X[[3, 4, 5, 0]])
    often = DataLoader(DATA, 4, sampler=torch.utils.data.RandomSampler(DATA, replacement=True, num_samples=40))
    assert len(make_dataset(often, classes=3).train.y) == 40


def test_fit_takes_loaders():
    run = bpfree.fit("mlp", DataLoader(DATA, 4), "dfa", test=DataLoader(DATA, 7), epochs=1, validation=0)
    assert run.result["test"]["accuracy"] >= 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless(), 4), r"a DataLoader without a length, which may never end.*torch.cat"),
        (DataLoader(TensorDataset(X), 4), "found batches that are not pairs of tensors, but list"),
        (DataLoader(DATA, 4, collate_fn=lambda items: {"x": 1}), "not pairs of tensors, but dict"),
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
        make_dataset(loader)


def test_one_that_says_how_long_it_is_is_taken_at_its_word():
    assert len(make_dataset(DataLoader(Counted(), 4), classes=2).train.y) == 12


class Numbered(torch.utils.data.Dataset):
    """Sample i holds i; two classes, all images of a class being equal would not matter."""

    def __init__(self, n=60, fails_at=None):
        self.n, self.fails_at = n, fails_at

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.fails_at:
            raise OSError(f"cannot open image {i}")
        return torch.tensor([float(i)]), i % 2


class Batched(torch.utils.data.Dataset):
    """Items are batches already, for a loader with batch_size=None."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.arange(i * 5.0, i * 5 + 5).view(5, 1), torch.arange(5) % 2


def often(data, n=60):
    generator = torch.Generator().manual_seed(0)
    return WeightedRandomSampler(torch.ones(len(data)), n, generator=generator)


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(Numbered(), 8, sampler=often(Numbered())),
        DataLoader(Numbered(), 8, sampler=often(Numbered()), num_workers=1, drop_last=True),
        DataLoader(Numbered(), 8, sampler=[*range(30), *range(30)]),
        DataLoader(Numbered(), batch_sampler=[[i, (i + 1) % 60] for i in range(60)]),
        DataLoader(Numbered(), 8, sampler=RandomSampler(Numbered(), replacement=True, num_samples=90)),
        DataLoader(Subset(Numbered(), [*range(20), *range(10)]), 8, shuffle=True),
        DataLoader(Batched(), batch_size=None, sampler=[0, 1, 2, 0, 3, 4]),
        Subset(Numbered(), [*range(20), *range(10)]),
        ConcatDataset([SAME := Numbered(20), SAME, Subset(SAME, [3, 4])]),
        Subset(ConcatDataset([SAME, SAME]), [0, 20, 1, 21, 2, 3]),
    ],
    ids=range(10),
)
def test_validation_shares_no_sample_with_training(data):
    dataset = make_dataset(data)
    assert len(dataset.train.y) > len(dataset.train.x.unique()), "copies stay in training"
    for seed in range(3):
        train, validation = dataset.carve(0.2, seed)
        held = validation.x.flatten().tolist()
        assert not {*train.x.flatten().tolist()} & {*held}
        assert len(held) == len({*held}) == round(0.2 * len(dataset.train.x.unique()))
        assert torch.equal(validation.y, validation.x.flatten().long() % 2) or isinstance(data, DataLoader)
        whole = {*train.x.flatten().tolist(), *held}
        assert whole == {*dataset.train.x.flatten().tolist()}


def test_equal_samples_are_not_copies():
    data = make_dataset(DataLoader(TensorDataset(torch.zeros(30, 2), torch.arange(30) % 2), 4, shuffle=True))
    assert data.origin is None
    train, validation = data.carve(0.2, 0)
    assert (len(train.y), len(validation.y)) == (24, 6)


def test_copies_are_kept_apart_when_classes_are_chosen_or_thinned():
    loader = DataLoader(Numbered(), 8, sampler=[*range(60), *range(0, 60, 3)])
    chosen = select(make_dataset(loader), [1, 0])
    assert len(chosen.origin) == len(chosen.train.y)
    train, validation = chosen.carve(0.25, 0)
    assert not {*train.x.flatten().tolist()} & {*validation.x.flatten().tolist()}
    run = bpfree.fit("mlp", loader, "backprop", epochs=1, batch_size=8, fraction=0.5, validation=0.2)
    assert run.metrics[0]["validation"]["accuracy"] >= 0


def test_a_sampler_of_copies_with_a_collate_fn_that_drops_some_is_refused():
    def drop(items):
        return torch.utils.data.default_collate(items[:-1])

    with pytest.raises(UserError, match="its sampler repeats samples, and its collate_fn gives 45 samples where .* 60"):
        make_dataset(DataLoader(Numbered(), 4, sampler=[*range(30), *range(30)], collate_fn=drop))
    assert len(make_dataset(DataLoader(Numbered(), 4, sampler=range(60), collate_fn=drop)).train.y) == 45


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_data_set_or_a_worker_is_one_clear_line(workers):
    loader = DataLoader(Numbered(fails_at=13), 4, num_workers=workers)
    with pytest.raises(
        UserError, match=r"data: its DataLoader failed at batch 3, from 0 \(OSError: cannot open image 13"
    ) as e:
        make_dataset(loader)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"its Numbered failed at item 13, from 0 \(OSError: cannot open image 13\)"):
        make_dataset(Numbered(fails_at=13))


class Stream(IterableDataset):
    def __len__(self):
        return 12

    def __iter__(self):
        return iter([(torch.tensor([float(i)]), i % 2) for i in range(12)])


def test_a_stream_is_read_once_however_many_workers_there_are():
    data = make_dataset(DataLoader(Stream(), 5, num_workers=2))
    assert data.train.x.flatten().tolist() == list(range(12))


def test_the_last_part_is_not_dropped():
    assert len(make_dataset(DataLoader(Numbered(), 7, drop_last=True)).train.y) == 60


def test_a_loader_of_ones_own_is_gone_through_as_it_is():
    class Twice(DataLoader):
        def __iter__(self):
            return ((x, y) for x, y in [(torch.zeros(3, 2), torch.tensor([0, 1, 0]))] * len(self))

    assert len(make_dataset(Twice(Numbered(), 30)).train.y) == 6


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: (torch.zeros(2), torch.tensor(0)), r"batches of shape \[2\] with labels \[\]"),
        (lambda items: (torch.tensor(0.0), torch.zeros(2)), r"batches of shape \[\] with labels"),
        (lambda items: ("a", torch.zeros(2)), "found str of <U1"),
        (lambda items: 1 / 0, "failed at batch 0, from 0 .ZeroDivisionError: division by zero"),
        (
            lambda items: ({"a": torch.zeros(2)} if items[0][1] else torch.zeros(2), torch.zeros(2)),
            "do not go together",
        ),
    ],
)
def test_batches_that_cannot_work(collate, message):
    with pytest.raises(UserError, match=message):
        make_dataset(DataLoader(Numbered(), 1, collate_fn=collate))


def test_a_batch_that_is_not_batched_is_refused():
    with pytest.raises(UserError, match=r"with labels \[\].*batch_size"):
        make_dataset(DataLoader(Numbered(), batch_size=None))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_drawn_while_reading_is_the_same_in_every_run(workers):
    class Random(Numbered):
        def __getitem__(self, i):
            return torch.rand(2), i % 2

    loader = DataLoader(Random(), 8, sampler=WeightedRandomSampler(torch.ones(60), 60), num_workers=workers)
    for data in (loader, Random()):
        state = torch.get_rng_state()
        first = make_dataset(data)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(make_dataset(data).train.x, first.train.x)


def test_an_object_with_a_length_and_items_is_a_data_set():
    """As those of Hugging Face are."""

    class Rows:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            if i >= 6:
                raise IndexError
            return {"input_ids": [i, 1, 2], "label": i % 2}

    assert make_dataset(Rows()).train.x["input_ids"].shape == (6, 3)
