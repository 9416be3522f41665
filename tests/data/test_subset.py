"""Subsets, skew and label noise: what is kept, of what, and by which key."""

import json
from itertools import pairwise

import pytest
import torch
import yaml

import bpfree
from bpfree import Noise, UserError
from bpfree.data import Dataset, Labels, Split
from bpfree.data.subset import Skew, mislabel, select, thin
from bpfree.runs.config_file import load_config
from bpfree.runs.data_config import DataConfig
from tests.test_cli import shell

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSES = 7


@pytest.fixture
def split():
    """1,400 samples whose x says where they were, 200 of each class, in no order."""
    labels = (torch.arange(1400) % CLASSES)[torch.randperm(1400, generator=torch.Generator().manual_seed(0))]
    return Split(torch.arange(1400).view(-1, 1).float(), labels)


def counts(split, classes=CLASSES):
    return torch.bincount(split.y, minlength=classes).tolist()


def places(split):
    return set(split.x.flatten().long().tolist())


@pytest.mark.parametrize(
    ("skew", "expected"),
    [
        (Skew("long_tailed", 100), [200, 93, 43, 20, 9, 4, 2]),  # 200 x 100^(-i/6)
        (Skew("long_tailed", 1), [200] * 7),
        (Skew("step", 10), [200, 200, 200, 200, 20, 20, 20]),  # class 3 is the median
        (Skew("step", 1e9), [200, 200, 200, 200, 1, 1, 1]),  # at least one
    ],
)
def test_class_counts_are_those_of_the_formula(skew, expected, split):
    assert counts(thin(split, CLASSES, Noise(), skew=skew)) == expected


def test_step_on_an_even_number_of_classes_is_half_of_them():
    split = Split(torch.zeros(100, 1), torch.arange(100) % 10)
    assert counts(thin(split, 10, Noise(), skew=Skew("step", 5)), 10) == [10] * 5 + [2] * 5


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1, 0.013, 1e-6])
def test_a_fraction_is_of_every_class(fraction):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate((500, 60, 7, 1, 0))])
    kept = counts(thin(Split(torch.zeros(len(labels), 1), labels), 5, Noise(), fraction=fraction), 5)
    assert kept == [max(1, round(n * fraction)) if n else 0 for n in (500, 60, 7, 1, 0)]


def test_skew_and_fraction_together(split):
    part = thin(split, CLASSES, Noise(), fraction=0.5, skew=Skew("long_tailed", 100))
    assert counts(part) == [100, 46, 22, 10, 5, 2, 1]


def test_samples_keep_their_order_and_their_labels(split):
    part = thin(split, CLASSES, Noise(3), fraction=0.3, skew=Skew("step", 4))
    rows = part.x.flatten().long()
    assert torch.equal(rows, rows.sort().values)
    assert torch.equal(part.y, split.y[rows])


def test_a_part_depends_on_the_key_alone(split):
    parts = [places(thin(split, CLASSES, Noise(seed), fraction=0.2)) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert 20 < len(parts[0] & parts[2]) < 100  # 56 by chance


def test_smaller_parts_lie_within_larger_ones(split):
    nested = [places(thin(split, CLASSES, Noise(), fraction=f)) for f in (0.01, 0.1, 0.5, 1.0)]
    assert nested == sorted(nested, key=len)
    assert all(small < large for small, large in pairwise(nested))
    skewed = places(thin(split, CLASSES, Noise(), skew=Skew("long_tailed", 100)))
    assert places(thin(split, CLASSES, Noise(), skew=Skew("long_tailed", 100), fraction=0.1)) < skewed


def test_nothing_asked_for_is_the_split_itself(split):
    assert thin(split, CLASSES, Noise()) is split
    assert mislabel(split, CLASSES, 0.0, Noise()) is split


def test_targets_that_are_no_classes_are_one_class():
    split = Split(torch.arange(50).view(-1, 1).float(), torch.randn(50))
    assert len(thin(split, 0, Noise(), fraction=0.5).y) == 25
    with pytest.raises(UserError, match=r"data.skew: needs classes, .* torch.float32 of shape \[50\]. Leave it out"):
        thin(split, 0, Noise(), skew=Skew("step", 2))
    with pytest.raises(UserError, match=r"data.label_noise: needs classes"):
        mislabel(split, 2, 0.5, Noise())


@pytest.mark.parametrize("share", [0.001, 0.2, 0.99])
def test_that_share_of_the_labels_is_wrong_and_never_the_same_class(share, split):
    noisy = mislabel(split, CLASSES, share, Noise())
    assert torch.equal(noisy.x, split.x)
    assert int((noisy.y != split.y).sum()) == round(share * 1400)
    assert 0 <= int(noisy.y.min()) <= int(noisy.y.max()) < CLASSES
    assert torch.equal(split.y, mislabel(split, CLASSES, 0.0, Noise()).y), "the original is left alone"


def test_wrong_labels_are_uniform_over_the_other_classes():
    split = Split(torch.zeros(60_000, 1), torch.arange(60_000) % 3)
    noisy = mislabel(split, 3, 0.5, Noise())
    for true in range(3):
        found = torch.bincount(noisy.y[split.y == true], minlength=3).double() / 20_000
        expected = torch.full((3,), 0.25, dtype=torch.float64)
        expected[true] = 0.5
        torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_more_noise_keeps_what_was_wrong_before(split):
    some, more = (mislabel(split, CLASSES, share, Noise(2)) for share in (0.1, 0.4))
    wrong = some.y != split.y
    assert torch.equal(some.y[wrong], more.y[wrong])
    assert not torch.equal(some.y, mislabel(split, CLASSES, 0.1, Noise(3)).y)


def test_a_class_subset_is_of_all_splits_and_renumbered(split):
    names = tuple("abcdefg")
    whole = Dataset("x", split, split.take(torch.arange(70)), Labels(CLASSES, names))
    few = select(whole, [6, 0, 3])
    assert (few.classes, few.class_names) == (3, ("g", "a", "d"))
    for part, of in ((few.train, whole.train), (few.test, whole.test)):
        assert set(part.y.tolist()) == {0, 1, 2}
        rows = part.x.flatten().long()
        assert torch.equal(torch.tensor([6, 0, 3])[part.y], of.y[rows])
        assert len(rows) == int(torch.isin(of.y, torch.tensor([0, 3, 6])).sum())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1], r"data.classes: found \[1\], allowed: at least two classes, each once"),
        ([], "at least two"),
        ([1, 2, 1], r"found \[1, 2, 1\], allowed: at least two classes, each once"),
        ([0, 7], "found 7, allowed: 0 to 6, as x has them"),
        ([0, -1], "found -1, allowed: 0 to 6"),
        ([0, 6], "found 6, of which x has no training sample"),
        ([4, 5], "found .4, 5., of which x lacks test or validation samples"),
    ],
)
def test_class_subsets_that_cannot_be(classes, message):
    train, test = (Split(torch.zeros(n, 1), torch.arange(n) % n) for n in (6, 4))
    with pytest.raises(UserError, match=message):
        select(Dataset("x", train, test, Labels(CLASSES)), classes)


def test_validation_is_what_it_would_be_and_the_rest_is_thinned(digits_data):
    plain = DataConfig(validation=0.2)
    worse = DataConfig(validation=0.2, fraction=0.5, skew={"factor": 20}, label_noise=0.3)
    (train, validation), (less, same) = plain.split(digits_data, 1), worse.split(digits_data, 1)
    assert torch.equal(validation.x, same.x)
    assert torch.equal(validation.y, same.y)
    originals = {x.numpy().tobytes() for x in train.x}
    assert all(x.numpy().tobytes() in originals for x in less.x)
    whole = torch.bincount(train.y, minlength=10)
    expected = (whole * 20.0 ** (-torch.arange(10, dtype=torch.float64) / 9) * 0.5).round().sum()
    assert len(less.y) == int(expected)
    assert not torch.equal(worse.split(digits_data, 2)[0].x, less.x)


def test_noise_comes_after_thinning(digits_data):
    """So classes have the sizes that were asked for, and the share is of the samples that are there."""
    options = {"fraction": 0.5, "skew": {"kind": "step", "factor": 5}}
    clean = DataConfig(**options).split(digits_data, 0)[0]
    noisy = DataConfig(**options, label_noise=0.25).split(digits_data, 0)[0]
    assert torch.equal(clean.x, noisy.x)
    assert int((clean.y != noisy.y).sum()) == round(0.25 * len(clean.y))


def test_a_run_says_how_many_samples_it_had(tmp_path):
    run = bpfree.fit("mlp", "digits", "dfa", epochs=1, skew={"factor": 100}, fraction=0.5, out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "result.json").read_text())["train_samples"]
    sizes = run.config.data.split(run.config.data.load(), 0)[0]
    assert told == {"count": len(sizes.y), "by_class": counts(sizes, 10)}
    assert told["by_class"][0] >= 60
    assert told["by_class"][9] == 1


def test_a_run_on_some_classes_has_that_many_outputs(tmp_path):
    run = bpfree.fit("mlp", "digits", "mono_forward", epochs=3, classes=[3, 8], out=tmp_path / "run")
    assert run.scores(run.test.x).shape == (len(run.test.y), 2)
    assert set(run.test.y.tolist()) == {0, 1}
    assert run.result["test"]["accuracy"] > 0.9
    loaded = bpfree.load(tmp_path / "run")
    assert loaded.evaluate((run.test.x, run.test.y)) == run.result["test"]


def test_classes_of_arrays_are_a_number_or_a_choice(digits_data):
    arrays = (digits_data.train.x, digits_data.train.y)
    test = (digits_data.test.x, digits_data.test.y)
    few = bpfree.fit("mlp", arrays, "backprop", epochs=1, classes=(5, 2, 9), test=test)
    assert few.result["classes"]["count"] == [int((test[1] == c).sum()) for c in (5, 2, 9)]
    assert bpfree.fit("mlp", arrays, "backprop", epochs=1, classes=12).task.classes == 12
    with pytest.raises(UserError, match="data.classes: found object, allowed: plain values"):
        bpfree.fit("mlp", arrays, "backprop", epochs=1, classes=object())


def test_a_search_on_some_classes(tmp_path):
    space = {"search": "choice", "values": [0.01, 0.02]}
    values = {
        "data": {"name": "digits", "classes": [7, 1, 4], "fraction": space},
        "rule": "dfa",
        "train": {"epochs": 1},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({**values, "tune": {"trials": 2}}))
    result = shell("tune", tmp_path / "search.yaml", "--out", tmp_path / "study")
    assert result.exit_code == 0, result.output
    told = [json.loads(p.read_text()) for p in (tmp_path / "study" / "trials").rglob("result.json")]
    assert {len(one["train_samples"]["by_class"]) for one in told} == {3}


def test_the_statistics_of_the_input_are_of_what_is_left():
    runs = [bpfree.fit("mlp", "digits", "backprop", epochs=1, fraction=f) for f in (1.0, 0.02)]
    assert runs[0].preprocess.mean != runs[1].preprocess.mean


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.fraction=0", "data.fraction: found 0, allowed: greater than 0"),
        ("data.fraction=1.1", "data.fraction: found 1.1, allowed: less than or equal to 1"),
        ("data.fraction=.nan", "data.fraction: found nan, allowed: "),
        ("data.label_noise=1", "data.label_noise: found 1, allowed: less than 1"),
        ("data.label_noise=-0.1", "data.label_noise: found -0.1, allowed: greater than or equal to 0"),
        ("data.skew.factor=0.5", "data.skew.factor: found 0.5, allowed: greater than or equal to 1"),
        ("data.skew.factor=.inf", "data.skew.factor: found inf, allowed: a finite number"),
        ("data.skew={kind: step}", "data.skew.factor: missing, and skew needs it"),
        ("data.skew={kind: tail, factor: 9}", "data.skew.kind: found 'tail', allowed: 'long_tailed' or 'step'"),
        ("data.skew={factr: 9, factor: 9}", r"unknown key 'data.skew.factr'. Did you mean 'data.skew.factor'\?"),
        ("data.skew=3", r"data.skew: found 3, allowed: a section of keys \(kind, factor\)"),
        ("data.classes=[0, 1.5]", "data.classes.1: found 1.5, allowed: a valid integer"),
        ("data.classes=3", "data.classes: found 3, allowed: a valid list"),
        ("data.fractoin=0.5", r"unknown key 'data.fractoin'. Did you mean 'data.fraction'\?"),
    ],
)
def test_what_does_not_hold_is_named(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("digits/dfa", [override])
    assert "\n" not in str(caught.value)
