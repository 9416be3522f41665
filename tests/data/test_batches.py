"""Batches on a device: nothing waits for it, and samples that do not fit there come from the host one batch ahead."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bpfree.data import Augment, Batches, Preprocess, Split, placement
from bpfree.data.augment import PixelValues
from bpfree.data.placement import Raw, on_device, one_ahead, placed
from tests.training.test_one_device import Watch

CPU, META = torch.device("cpu"), torch.device("meta")
ALL = {"shift": 1, "flip": True, "crop": 0.5, "brightness": 0.4, "contrast": 0.4, "cutout": 3, "mixup": 0.3}


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("seed", [None, 0])
def test_an_epoch_stays_on_the_device(seed, on_host, rebuild, digits_data, monkeypatch):
    """Only the order of the epoch is copied to it, and the batches of samples that lie on the host."""
    monkeypatch.setattr(placement, "free_memory", lambda device: 1 if on_host else None)
    preprocess = Preprocess.of(digits_data, digits_data.train)
    augment = Augment(**ALL, values=PixelValues.of(preprocess))
    batches = Batches(digits_data.train, preprocess, 500, device=META, augment=augment, seed=seed, rebuild=rebuild)
    next(batches.epoch())  # constants are made once and kept
    with Watch() as watch:
        found = list(batches.epoch(1))
    assert all(batch.x.is_meta and batch.y.is_meta for batch in found)
    assert not watch.mixed
    assert all(place.startswith("data/placement.py") for place in watch.waits), watch.waits
    order = seed is not None
    assert sum(watch.waits.values()) == (2 * len(found) if on_host else order)


def test_samples_stay_on_the_host_if_they_would_fill_the_device(caplog, monkeypatch):
    x = torch.zeros(100, 10)  # 4,000 bytes
    monkeypatch.setattr(placement, "free_memory", lambda device: 16_000)
    assert placed(x, META).is_meta
    assert not caplog.messages
    monkeypatch.setattr(placement, "free_memory", lambda device: 15_999)
    with caplog.at_level(logging.INFO, "bpfree"):
        assert placed(x, META) is x
    (line,) = caplog.messages
    assert "samples or labels of shape [100, 10] (0.00 GB) stay on the cpu" in line
    assert placed(x, CPU) is x


@pytest.fixture
def streams(monkeypatch):
    """The CPU as a device that copies by itself, and a list of what happens."""
    events: list[tuple[str, int]] = []
    current = SimpleNamespace(wait_event=lambda event: events.append(("waits for", event)))

    def sent(x: Tensor, device: torch.device) -> Tensor:
        events.append(("copies", int(x.flatten()[0])))
        return x.clone()

    module = SimpleNamespace(
        Stream=lambda device: SimpleNamespace(record_event=lambda: events[-1][1]),
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: current,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(placement, "sent", sent)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: events.append(("keeps", int(self.flatten()[0]))))
    return events


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_one_ahead_gives_the_same_batches(n, streams):
    batches = [Raw({"a": torch.full((2, 3), i), "b": torch.full((2,), i)}, torch.full((2,), i)) for i in range(n)]
    found = list(one_ahead(batches, CPU))
    for a, b in zip(found, on_device(batches, CPU), strict=True):
        assert torch.equal(a.y, b.y)
        assert all(torch.equal(a.x[name], b.x[name]) for name in b.x)


def test_a_copy_begins_before_the_batch_before_it_is_used(streams):
    for i, batch in enumerate(one_ahead([Raw(torch.full((2,), i), torch.full((2,), i)) for i in range(3)], CPU)):
        assert int(batch.y[0]) == i
        streams.append(("step", i))
    each = {i: [what for what, number in streams if number == i] for i in range(3)}
    assert set(map(tuple, each.values())) == {("copies", "copies", "waits for", "keeps", "keeps", "step")}
    for i in range(2):
        assert streams.index(("copies", i + 1)) < streams.index(("step", i))
    assert streams.index(("copies", 2)) > streams.index(("step", 0)), "one ahead and not more"


def test_a_last_batch_and_the_middle_of_an_epoch_from_the_host(digits_data, streams, monkeypatch):
    """Samples of the host give the batches that they give on the device."""
    split = Split(digits_data.train.x[:75], digits_data.train.y[:75])
    preprocess = Preprocess.of(digits_data, split)
    plain = list(Batches(split, preprocess, 10).epoch(start=3))
    batches = Batches(split, preprocess, 10)
    batches.device = torch.device("cuda")
    monkeypatch.setattr("bpfree.data.batches.gathered", lambda x, index, device: x[index])
    for a, b in zip(plain, batches.epoch(start=3), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
