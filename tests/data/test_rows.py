"""Samples that stay in a file: the same as in memory, whatever is done with them, and without taking memory."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from bpfree.data import Batches, Dataset, Labels, Preprocess, Split
from bpfree.data.files.rows import RowFile, Rows, chunks
from bpfree.errors import UserError

N, SHAPE = 50, (3, 4, 5)


@pytest.fixture
def pair(tmp_path):
    """The same samples in memory and in a file that has other bytes before them."""
    x = torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "x").write_bytes(b"before" + x.numpy().tobytes())
    return x, Rows(RowFile(tmp_path / "x", 6, SHAPE, torch.uint8), torch.arange(N))


CHOICES = [
    *(torch.tensor([3, 1, 1, 49]), torch.tensor([], dtype=torch.int64), torch.arange(N) > 20, [4, 5, 9]),
    *(torch.tensor([[1, 2], [3, 4]]), np.array([7, 8]), slice(3, 10), slice(None, None, 7), slice(-5, None), 0, -1),
]
WHOLE = [
    *(lambda x: x.float().mean(0), lambda x: x[:, 0], lambda x: x[2, 1], lambda x: x[..., 1], lambda x: x[None]),
    *(lambda x: torch.cat([x, x]), lambda x: torch.stack(list(x)), lambda x: x.flatten(1).sum(1), lambda x: x.clone()),
    *(lambda x: torch.tensor(x.tolist()), lambda x: torch.from_numpy(x.numpy()), lambda x: x.to("cpu"), copy.deepcopy),
    *(lambda x: torch.from_numpy(np.asarray(x)), lambda x: x.detach()[4], lambda x: x == x[0], lambda x: 255 - x),
    *(lambda x: x.share_memory_(), lambda x: x.index_select(0, torch.tensor([2])), lambda x: x.unbind(1)[0]),
]


@pytest.mark.parametrize("key", CHOICES, ids=str)
def test_rows_are_those_of_the_tensor(pair, key):
    x, rows = pair
    assert torch.equal(rows[key], x[key])
    assert type(rows[key]) is torch.Tensor


@pytest.mark.parametrize("use", WHOLE, ids=range(len(WHOLE)))
def test_whatever_is_done_gives_what_it_gives_of_the_tensor(pair, use):
    x, rows = pair
    assert torch.equal(use(rows), use(x))


def test_what_is_known_without_reading(pair, monkeypatch):
    x, rows = pair
    monkeypatch.setattr(RowFile, "read", lambda *_: pytest.fail("read"))
    for ask in (len, lambda x: x.shape, lambda x: x.dtype, lambda x: x.dim(), lambda x: x.device, torch.Tensor.numel):
        assert ask(rows) == ask(x)
    assert not rows.is_floating_point()
    assert isinstance(rows, torch.Tensor)
    assert repr(rows).startswith("Rows(")
    part = Split(rows, torch.arange(N)).take(torch.tensor([4, 2])).take(torch.tensor([1]))
    assert isinstance(part.x, Rows)
    assert part.x.positions.tolist() == part.y.tolist() == [2]


def test_chunks_are_the_whole_in_order(pair, monkeypatch):
    monkeypatch.setattr("bpfree.data.files.rows._CHUNK", 7 * 60)
    for x in pair:
        parts = list(chunks(x))
        assert [len(part) for part in parts] == [7] * 7 + [1]
        assert torch.equal(torch.cat(parts), pair[0])


def test_batches_and_statistics_are_the_same_to_the_bit(pair):
    found = []
    for x in pair:
        split, _ = Dataset("x", Split(x, torch.arange(N) % 3), None, Labels(3)).carve(0.2, 1)
        preprocess = Preprocess.of(Dataset("x", split, None, Labels(3)), split)
        found.append((preprocess, [b for e in (0, 1) for b in Batches(split, preprocess, 8, seed=5).epoch(e)]))
    (first, ours), (second, theirs) = found
    assert first == second
    assert len(ours) == 10
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(ours, theirs, strict=True))


def test_a_device_gets_each_batch_by_itself(pair):
    split = Split(pair[1], torch.zeros(N, dtype=torch.int64))
    batches = Batches(split, Preprocess.of(Dataset("x", split, None, Labels(2)), split), 8, device="meta")
    assert isinstance(batches.x, Rows)
    batch = next(batches.epoch())
    assert (batch.x.device.type, batch.y.device.type, tuple(batch.x.shape)) == ("meta", "meta", (8, *SHAPE))


def test_a_file_that_somebody_cut_off_is_named(pair):
    path = pair[1].file.path
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"x: truncated while it was in use"):
        pair[1][40:]


TRAIN = """
import resource, sys, torch, bpfree
x = torch.zeros(1)
bpfree.fit("mlp", "digits", "backprop", epochs=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spec = {"name": "arrays", "path": sys.argv[1], "labels": sys.argv[2], "memory_limit": 20, "test": 0.1}
run = bpfree.fit({"name": "mlp", "hidden": [8]}, spec, "backprop", epochs=1, batch_size=256)
assert run.result["train"]["accuracy"] > 0.4
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are told in KiB there")
def test_a_training_on_more_than_the_limit_stays_under_it(tmp_path):
    """293 MiB of samples, in a file with a hole, so that it takes no room on the disk."""
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (300_000, 1, 32, 32)}
        )
        file.truncate(file.tell() + 300_000 * 32 * 32)
    np.save(tmp_path / "y.npy", np.arange(300_000) % 2)
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    assert grown < 100
