"""Nets of several inputs: tuples and dicts of arrays, from arrays, data sets and loaders."""

import re
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bpfree
from bpfree.data import Preprocess, make_dataset
from bpfree.errors import UserError

RNG = np.random.default_rng(0)
N = 40
IMAGES = RNG.integers(0, 256, (N, 1, 6, 6), dtype=np.uint8)
TOKENS = RNG.integers(0, 9, (N, 5))
MASK = TOKENS > 2
Y = np.arange(N) % 2


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.token, self.head = nn.Linear(36, 8), nn.Embedding(9, 8), nn.Linear(16, 2)

    def forward(self, pixel_values, input_ids):
        assert pixel_values.is_floating_point()
        return self.head(torch.cat([self.image(pixel_values.flatten(1)).relu(), self.token(input_ids).mean(1)], 1))


class Masked(nn.Module):
    """As the classifiers of Hugging Face: arguments by name, and an object with logits."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        assert not attention_mask.is_floating_point()
        weight = attention_mask.float().unsqueeze(2)
        return SimpleNamespace(logits=self.head((self.token(input_ids) * weight).sum(1)))


class Items(Dataset):
    def __init__(self, form):
        self.form = form

    def __len__(self):
        return N

    def __getitem__(self, i):
        image, tokens, y = torch.from_numpy(IMAGES[i]), torch.from_numpy(TOKENS[i]), int(Y[i])
        if self.form == "tuple":
            return (image, tokens), y
        if self.form == "dict":
            return {"pixel_values": image, "input_ids": tokens}, y
        return {"pixel_values": image, "input_ids": tokens, self.form: y}


TUPLE = ((IMAGES, TOKENS), Y)
NAMED = {"pixel_values": IMAGES, "input_ids": TOKENS}


@pytest.mark.parametrize(
    ("data", "by_name"),
    [
        (TUPLE, False),
        (([], Y), True),
        ({**NAMED, "labels": Y}, True),
        (UserDict({**NAMED, "label": Y}), True),
        (Items("tuple"), False),
        (Items("dict"), True),
        (Items("labels"), True),
        (DataLoader(Items("tuple"), 7, shuffle=True), False),
        (DataLoader(Items("dict"), 7), True),
        (DataLoader(Items("y"), 7, num_workers=1), True),
    ],
    ids=range(10),
)
def test_every_form_gives_the_same_data(data, by_name):
    data = (NAMED, Y) if isinstance(data, tuple) and data[0] == [] else data
    split = make_dataset(data).train
    assert isinstance(split.x, dict if by_name else tuple)
    image, tokens = split.x.values() if by_name else split.x
    assert torch.equal(image, torch.from_numpy(IMAGES))
    assert torch.equal(tokens, torch.from_numpy(TOKENS))
    assert split.y.tolist() == Y.tolist()


def test_a_run_trains_predicts_and_is_loaded(tmp_path):
    runs = {}
    for form, data, x in (("tuple", TUPLE, TUPLE[0]), ("dict", {**NAMED, "labels": Y}, NAMED)):
        torch.manual_seed(0)
        run = bpfree.fit(Towers(), data, "backprop", epochs=2, batch_size=8, test=data, out=tmp_path / form)
        scores = runs[form] = run.scores(x)
        assert scores.shape == (N, 2)
        assert run.evaluate(data) == run.result["test"]
        loaded = bpfree.load(tmp_path / form, net=Towers())
        assert torch.equal(loaded.scores(x), scores)
        assert loaded.preprocess == run.preprocess
    assert torch.equal(runs["tuple"], runs["dict"])
    assert torch.equal(run.scores(dict(reversed(NAMED.items()))), scores), "whatever the order of the names"


def test_inputs_are_prepared_as_each_alone_would_be():
    split = make_dataset(({**NAMED, "mask": MASK, "size": X_SIZE}, Y))
    prepared = Preprocess.of(split, split.train)(split.train.x)
    alone = make_dataset((IMAGES, Y))
    assert torch.equal(prepared["pixel_values"], Preprocess.of(alone, alone.train)(alone.train.x))
    assert torch.equal(prepared["input_ids"], torch.from_numpy(TOKENS))
    assert prepared["mask"].dtype == torch.bool
    assert torch.equal(prepared["size"], torch.from_numpy(X_SIZE))


X_SIZE = RNG.normal(size=(N, 2)).astype(np.float32)


def test_a_net_that_takes_named_tokens_and_gives_an_object():
    data = {"input_ids": TOKENS, "attention_mask": MASK.astype(int), "labels": TOKENS[:, 0] % 2}
    run = bpfree.fit(Masked(), DataLoader(list_of(data), 8), "backprop", epochs=2, test=data)
    x = {name: data[name] for name in ("input_ids", "attention_mask")}
    assert run.predict(x).shape == (N,)
    assert run.result["test"]["accuracy"] == pytest.approx(float((run.predict(x).numpy() == data["labels"]).mean()))


def list_of(data):
    return [{name: values[i] for name, values in data.items()} for i in range(N)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES, TOKENS, Y), r"3 parts, allowed.*cannot tell which part is the label.*\(\(a, b\), labels\)"),
        (TensorDataset(*map(torch.from_numpy, (IMAGES, TOKENS, Y))), r"items that are not pairs, but 3 parts"),
        (DataLoader(TensorDataset(*map(torch.from_numpy, (IMAGES, TOKENS, Y))), 4), r"3 parts.*\(\(a, b\), labels\)"),
        (NAMED, "dict with pixel_values, input_ids, allowed"),
        ({**NAMED, "labels": Y, "y": Y}, "Give exactly one of these names"),
        ({"labels": Y}, "samples beside it"),
        (({"a b": IMAGES}, Y), "found the name 'a b', allowed: names of arguments"),
        (({"a": IMAGES, "b": TOKENS[:5]}, Y), "found 5 samples and 40 labels"),
        (({"a": IMAGES, "b": TOKENS.astype(str)}, Y), r"data \(samples\) 'b': found <U21"),
        (((IMAGES, np.full((N, 2), np.nan)), Y), "NaN or infinite"),
        (((IMAGES[:2], TOKENS[:2]), Y[:2]), "may be 2 samples or 2 inputs"),
    ],
    ids=range(11),
)
def test_forms_that_cannot_be_understood(data, message):
    with pytest.raises(UserError, match=message) as caught:
        make_dataset(data)
    assert "\n" not in str(caught.value)


def test_two_samples_of_two_inputs():
    two = torch.utils.data.Subset(Items("tuple"), [0, 1])
    for data in (two, DataLoader(two, 2)):
        assert [len(x) for x in make_dataset(data).train.x] == [2, 2]


def test_a_tuple_of_samples_is_an_array():
    samples, labels = zip(*[(torch.from_numpy(x), int(y)) for x, y in zip(IMAGES, Y, strict=True)], strict=True)
    assert torch.equal(make_dataset((samples, labels)).train.x, torch.from_numpy(IMAGES))


def test_predicting_from_another_form_than_that_of_training():
    run = bpfree.fit(Towers(), TUPLE, "backprop", epochs=1, batch_size=8)
    assert torch.equal(run.scores(list(TUPLE[0])), run.scores(TUPLE[0]))
    for x, found in ((IMAGES, "found one"), ((IMAGES,), "found"), ((IMAGES, TOKENS, TOKENS), "found 3")):
        with pytest.raises(UserError, match=rf"samples: {found}.*allowed: a tuple of 2, as in training"):
            run.predict(x)
    with pytest.raises(UserError, match="found the name|samples: found a, b|a tuple of 2"):
        run.predict({"a": IMAGES})
    with pytest.raises(UserError, match="samples have the shape"):
        run.predict((IMAGES, TOKENS[:, :3]))


def test_what_needs_one_array_says_so():
    for changes in ({"flip": True}, {"mixup": 0.2}):
        with pytest.raises(UserError, match=rf"data.augment.{next(iter(changes))}: samples are several inputs"):
            bpfree.fit(Towers(), TUPLE, "backprop", epochs=1, augment=changes)
    with pytest.raises(UserError, match="net: found 'mlp', which takes one tensor, but samples have 2 inputs"):
        bpfree.fit("mlp", TUPLE, "backprop", epochs=1)
    with pytest.raises(UserError, match="found several inputs, allowed where samples are to be rebuilt"):
        bpfree.fit(Towers(), TUPLE, "backprop", task="reconstruct", epochs=1)


def test_thinning_and_classes_take_all_inputs():
    run = bpfree.fit(Towers(), TUPLE, "backprop", epochs=1, batch_size=4, fraction=0.5, classes=[1, 0])
    assert run.predict(TUPLE[0]).shape == (N,)


def test_the_example_in_the_docs_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
    (example,) = re.findall(r"```python\n(import numpy.*?)```", page, re.DOTALL)
    exec(compile(example, "own_data.md", "exec"), {"__name__": "own_data"})
    assert "torch.Size([80])" in capsys.readouterr().out
