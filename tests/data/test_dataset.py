import numpy as np
import pytest
import torch

import bpfree
from bpfree.data import Augment, Batches, Dataset, Labels, Preprocess, Split, make_dataset
from bpfree.errors import UserError
from bpfree.noise import Noise


def images(n=50, channels=3):
    x = torch.randint(0, 256, (n, channels, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(x, torch.arange(n) % 4)


def batches(split, size=8, **options):
    return Batches(split, Preprocess.of(Dataset("x", split, None, Labels(4)), split), size, **options)


def test_train_and_validation_are_disjoint_whole_and_by_seed(digits_data):
    for seed in (0, 1):
        train, validation = digits_data.carve(0.2, seed)
        assert len(validation.y) == round(0.2 * len(digits_data.train.y))
        rows = torch.cat([train.x, validation.x]).flatten(1).float()
        assert torch.equal(rows.sum(0), digits_data.train.x.flatten(1).float().sum(0))
    assert not torch.equal(validation.x, digits_data.carve(0.2, 0)[1].x)
    assert torch.equal(validation.x, digits_data.carve(0.2, 1)[1].x)
    assert digits_data.carve(0, 0)[1] is None
    with pytest.raises(UserError, match=r"data.validation: found 0.0001, which leaves 0 of 1437"):
        digits_data.carve(0.0001, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_training_data_have_mean_0_and_deviation_1_by_channel(channels):
    split = images(400, channels)
    x = Preprocess.of(Dataset("x", split, None, Labels(4)), split)(split.x, torch.float64)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(channels, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(channels, dtype=torch.float64))
    assert split.x.dtype == torch.uint8


def test_preprocessing_survives_saving():
    split = images()
    preprocess = Preprocess.of(Dataset("x", split, None, Labels(4)), split)
    assert Preprocess.load(preprocess.save()) == preprocess


def test_floats_pass_as_they_are_and_a_constant_image_is_no_division_by_zero():
    floats = Split(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(Preprocess.of(Dataset("x", floats, None, Labels(2)), floats)(floats.x), floats.x)
    black = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), floats.y)
    assert bool(Preprocess.of(Dataset("x", black, None, Labels(2)), black)(black.x).isfinite().all())


def test_an_epoch_has_every_sample_once_in_a_keyed_order():
    split = Split(torch.arange(40.0).view(40, 1), torch.zeros(40, dtype=torch.int64))
    train = batches(split, seed=3)
    orders = [torch.cat([b.x for b in train.epoch(e)]).flatten().tolist() for e in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(40))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert torch.cat([b.x for b in batches(split, 7).epoch()]).flatten().tolist() == list(range(40))


def test_an_epoch_can_start_in_the_middle():
    train = batches(images(), seed=0, augment=Augment(shift=2, flip=True))
    whole, rest = list(train.epoch(4)), list(train.epoch(4, start=3))
    assert len(whole) == len(train) == 6
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(whole[3:], rest, strict=True))


def test_training_drops_the_last_part_and_evaluation_does_not():
    assert len(batches(images(50), 8, seed=0)) == 6
    assert len(batches(images(50), 8)) == 7
    assert [len(b.y) for b in batches(images(5), 8, seed=0).epoch()] == [5]


def test_shift_and_flip_against_a_plain_loop():
    x = images(30).x
    noise, shift = Noise(1).fold("batch"), 2
    found = Augment(shift=shift, flip=True)(x, noise)
    moved = flipped = 0
    for before, after in zip(x, found, strict=True):
        candidates = {}
        for flip in (False, True):
            image = before.flip(2) if flip else before
            padded = torch.nn.functional.pad(image, [shift] * 4)
            for dy in range(2 * shift + 1):
                for dx in range(2 * shift + 1):
                    candidates[flip, dy, dx] = padded[:, dy : dy + 6, dx : dx + 5]
        fits = [key for key, image in candidates.items() if torch.equal(image, after)]
        assert fits, "not a shift or flip of the original"
        moved += fits[0][1:] != (2, 2)
        flipped += fits[0][0]
    assert moved > 20
    assert 5 < flipped < 25
    assert torch.equal(found, Augment(shift=shift, flip=True)(x, noise))
    with pytest.raises(UserError, match="allowed: images"):
        Augment(flip=True)(torch.zeros(4, 9), noise)


def test_data_from_python():
    x, y = np.random.default_rng(0).normal(size=(9, 3)), np.arange(9) % 3
    dataset = make_dataset((x, y))
    assert (dataset.classes, dataset.train.x.dtype, dataset.train.y.dtype) == (3, torch.float32, torch.int64)
    torch_set = torch.utils.data.TensorDataset(torch.randn(6, 2), torch.arange(6) % 2)
    assert make_dataset(torch_set).train.x.shape == (6, 2)
    assert make_dataset((x, y.astype(float).reshape(9, 1)), test=(x, y)).test is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((4, 2)), np.zeros(3, int)), "found 4 samples and 3 labels"),
        ((np.zeros((4, 2)), np.array([0, 1, 0, -1])), "labels run from -1 to 1"),
        ((np.zeros((4, 2)), np.array([0, 1, 0.5, 1])), "with fractions"),
        ((np.full((4, 2), np.nan), np.array([0, 1, 0, 1])), "NaN or infinite"),
        ((np.zeros((0, 2)), np.zeros(0, int)), "found no samples"),
        ((np.zeros((4, 2)), np.zeros((4, 3), int)), "3 values that are not shares of one class"),
        ("nothing", "found str, allowed: a pair"),
        (({}, [0]), "found a mapping without samples, allowed: arrays by name"),
    ],
)
def test_data_that_cannot_work(data, message):
    with pytest.raises(UserError, match=message):
        make_dataset(data)


class Items(torch.utils.data.Dataset):
    def __init__(self, *items):
        self.items = items

    def __getitem__(self, i):
        return self.items[i]

    def __len__(self):
        return len(self.items)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items(), "found no samples"),
        (Items((torch.zeros(2), 0, 1)), "pairs"),
        (Items({"x": torch.zeros(2)}, {"x": torch.zeros(2)}), "not pairs, but dict with x, allowed.*'labels'"),
        (Items((torch.zeros(2), 0), (torch.zeros(3), 1)), "all samples of one shape"),
        (Items((torch.zeros(2), "cat"), (torch.zeros(2), "dog")), "class number"),
        (Endless(), "with a length"),
    ],
    ids=range(6),
)
def test_torch_datasets_that_cannot_work(data, message):
    with pytest.raises(UserError, match=message):
        make_dataset(data)


def test_labels_beyond_the_classes_given():
    with pytest.raises(UserError, match="labels run from 0 to 5, allowed: 0 to 2"):
        make_dataset((np.zeros((6, 2)), np.arange(6)), classes=3)


def test_what_was_trained_on_bytes_predicts_from_any_numbers(digits_data):
    run = bpfree.fit("mlp", (digits_data.train.x, digits_data.train.y), "dfa", epochs=1)
    x = digits_data.test.x[:5]
    expected = run.predict_proba(x)
    for same in (x.long(), x.double(), x.tolist(), x.numpy().astype(np.float64)):
        assert torch.equal(run.predict_proba(same), expected)
    assert run.predict(x[:0]).shape == (0,)
    with pytest.raises(UserError, match="NaN or infinite"):
        run.predict(np.full((2, 1, 8, 8), np.nan))
