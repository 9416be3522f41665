"""Labels that are text: they become classes by the alphabet, and predictions have their names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import bpfree
from bpfree.data import make_dataset

WORDS = np.array(["zero", "one", "two"])
X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3
X[np.arange(60), Y] += 4  # classes that a net learns in a moment


@pytest.mark.parametrize("form", [list, np.array, lambda y: np.array(y, dtype=object), lambda y: np.array(y)[:, None]])
def test_text_in_any_form_gives_the_same_data_as_numbers(form):
    dataset = make_dataset((X, form(WORDS[Y].tolist())))
    assert dataset.class_names == make_dataset({"x": X, "labels": form(WORDS[Y])}).class_names == ("one", "two", "zero")
    assert [dataset.class_names[label] for label in dataset.train.y] == WORDS[Y].tolist()


def test_a_run_trains_evaluates_and_predicts_by_names(tmp_path, undrawn):
    numbers = np.unique(WORDS[Y], return_inverse=True)[1]
    run, same = (bpfree.fit("mlp", (X, y), "backprop", epochs=3, test=(X, y)) for y in (WORDS[Y].tolist(), numbers))
    assert run.result["test"]["loss"] == same.result["test"]["loss"]
    assert np.mean(np.array(run.predict_names(X)) == WORDS[Y]) > 0.9
    assert run.predict(X).dtype == torch.int64
    assert run.evaluate((X[:9], WORDS[Y][:9])) == run.evaluate((X[:9], numbers[:9]))
    assert bpfree.load(run.save(tmp_path / "run")).predict_names(X) == run.predict_names(X)
    with pytest.raises(bpfree.UserError, match="have no names. Use predict"):
        same.predict_names(X)
    with pytest.raises(bpfree.UserError, match=r"found the label 'four' \(number 1"):
        run.evaluate((X[:2], ["one", "four"]))


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text("utf-8")
    (example,) = re.findall(r"### Labels that are text.*?```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "own_data.md", "exec"), {})
    assert re.search(r"\['(cat|dog)', '(cat|dog)'\]", capsys.readouterr().out)


def test_numbers_written_as_text_are_in_the_order_of_their_size():
    assert make_dataset((X[:3], ["10", "9", "10"])).class_names == ("9", "10")


@pytest.mark.parametrize(
    ("data", "test", "options", "message"),
    [
        ((X, ["cat"] * 60), None, {}, "found only the label 'cat', allowed: two or more"),
        ((X, WORDS[Y]), (X, Y), {}, "test .labels.: found numbers, but .* are text"),
        ((X, Y), (X, WORDS[Y]), {}, "test .labels.: found text, but .* are numbers"),
        ((X, WORDS[Y]), None, {"classes": 5}, "classes: found 5, but the labels are text with 3 classes"),
        ((X, [*WORDS[Y][:-1], None]), None, {}, "NoneType, str"),
    ],
)
def test_labels_that_do_not_fit_are_refused(data, test, options, message):
    with pytest.raises(bpfree.UserError, match=message):
        make_dataset(data, test, **options)


def test_one_sample_without_its_dimension_is_refused_with_the_cure():
    images = np.tile(np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8), (20, 1, 1, 1))
    run = bpfree.fit("mlp", (images, np.arange(20) % 2), "backprop", epochs=1)
    for samples in (images[:3], images[:3, 0], images[:3, 0, :, :, None], images[0]):
        assert len(run.predict(samples)) == len(samples)
    with pytest.raises(bpfree.UserError, match=r"found one sample \[8, 8\], allowed: N samples \[N, 1, 8, 8\]"):
        run.predict(images[0, 0])
