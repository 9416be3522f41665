"""Parts of a batch for several processes: together they are the batch, to the bit, whatever changes it."""

from contextlib import nullcontext

import pytest
import torch

from bpfree import UserError
from bpfree.data import Augment, Batches, Dataset, Labels, Preprocess, Split
from bpfree.data.augment import PixelValues
from bpfree.data.files.rows import RowFile, Rows
from bpfree.data.part import Part
from bpfree.noise import counting_everywhere

ALL = {"shift": 2, "flip": True, "crop": 0.5, "brightness": 0.4, "contrast": 0.4, "cutout": 3}
CHANGES = [{}, *({name: value} for name, value in ALL.items()), ALL, {"mixup": 0.3}, {**ALL, "mixup": 0.3}]
N, B = 25, 7


def images(shape=(3, 9, 8)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N, *shape), dtype=torch.uint8, generator=generator)
    return Split(x, torch.randint(0, 4, (N,), generator=generator))


def batches_of(split, changes, **options):
    preprocess = Preprocess.of(Dataset("x", split, None, Labels(4)), split)
    augment = Augment(**changes, values=PixelValues.of(preprocess))
    return Batches(split, preprocess, B, augment=augment, **options)


def assert_parts_are(whole, batches, size, **options):
    """The parts of `size` processes together are the whole batches, to the bit."""
    each = [list(batches.epoch(part=(rank, size), **options)) for rank in range(size)]
    assert all(len(parts) == len(whole) for parts in each)
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([parts[i].x for parts in each]), batch.x)
        assert torch.equal(torch.cat([parts[i].y for parts in each]), batch.y)


@pytest.mark.parametrize("draws", [nullcontext, counting_everywhere])
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes) or "none")
def test_parts_are_the_whole_batch_to_the_bit(changes, draws):
    batches = batches_of(images(), changes, seed=3)
    with draws():
        whole = list(batches.epoch(1, 1))
        assert len(whole) == 2
        for size in (1, 2, 3, 7):
            assert_parts_are(whole, batches, size, epoch=1, start=1)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_large_images_have_the_same_bits_however_many_are_computed_at_a_time(threads):
    """With several threads torch may split the sum over one large image, and not the sums over several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for changes in (ALL, {"contrast": 0.4}):
            batches = batches_of(images((3, 130, 128)), changes, seed=3)
            whole = list(batches.epoch(0))
            for size in (2, 3, 7):
                assert_parts_are(whole, batches, size)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{"seed": 1, "rebuild": True}, {"rebuild": True}, {}, {"dtype": torch.float64}])
def test_evaluation_and_autoencoders_have_parts_too(options):
    batches = batches_of(images(), ALL if "seed" in options else {}, **options)
    whole = list(batches.epoch())
    assert len(whole) == (3 if "seed" in options else 4)
    for size in (1, 2, 3, 5):  # the last batch of an evaluation has 4 samples, so one of 5 processes gets none
        assert_parts_are(whole, batches, size)


def test_several_inputs_have_parts():
    x = {"a": torch.rand(N, 3), "b": torch.arange(N).view(N, 1)}
    split = Split(x, torch.arange(N) % 4)
    batches = Batches(split, Preprocess.of(Dataset("x", split, None, Labels(4)), split), B, seed=0)
    for rank, rows in ((0, slice(0, 3)), (1, slice(3, 7))):
        for part, batch in zip(batches.epoch(part=(rank, 2)), batches.epoch(), strict=True):
            assert torch.equal(part.y, batch.y[rows])
            assert all(torch.equal(part.x[name], batch.x[name][rows]) for name in x)


@pytest.mark.parametrize("changes", [{}, ALL, {"mixup": 0.3}], ids=["none", "all", "mixup"])
def test_only_rows_of_the_part_are_read(changes, tmp_path, monkeypatch):
    split = images()
    (tmp_path / "x").write_bytes(split.x.numpy().tobytes())
    file = RowFile(tmp_path / "x", 0, (3, 9, 8), torch.uint8)
    batches = batches_of(split._replace(x=Rows(file, torch.arange(N))), changes, seed=3)
    read, real = [], file.read
    monkeypatch.setattr(file, "read", lambda index: read.append(len(index)) or real(index))
    found = list(batches.epoch(part=(1, 3)))
    assert [len(batch.y) for batch in found] == [2, 2, 2]
    assert read == ([7, 7, 7] if "mixup" in changes else [2, 2, 2])


@pytest.mark.parametrize("n", range(9))
@pytest.mark.parametrize("size", range(1, 6))
def test_each_row_has_one_process(n, size):
    parts = [Part.of(n, (rank, size)) for rank in range(size)]
    assert [row for part in parts for row in range(n)[part.rows]] == list(range(n))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_what_cannot_be_parted_is_refused():
    batches = batches_of(images(), {}, seed=0)
    with pytest.raises(UserError, match=r"part: found process 2 of 2, allowed: 0 to the number of processes - 1"):
        next(batches.epoch(part=(2, 2)))
    with pytest.raises(UserError, match=r"batch_size: found 7, allowed: at least 8, one for each process"):
        next(batches.epoch(part=(0, 8)))
