"""Functions of the user change training samples: as torchvision and kornia call them, and drawn by key."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, UserError
from bpfree.api import resume
from bpfree.data import Augment, Batches, PerSample, Preprocess
from bpfree.data.transforms import described, make_transform
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.helpers import same
from tests.runs.test_run import power_cut, weights

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
NOISE = Noise(4, 2).fold("batch", 7)


class RandomFlip(nn.Module):
    """As in torchvision.transforms.v2: one draw for all images that it gets, [..., C, H, W]."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        return x.flip(-1) if torch.rand(1) < self.p else x


class Jitter(nn.Module):
    """As in kornia: a draw for each image of a batch, values from 0 to 1."""

    def forward(self, x):
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        return (x * (0.5 + torch.rand(len(x), 1, 1, 1, device=x.device))).clamp(0, 1)


def with_every_generator(x):
    return x + torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002


def darken(x, by=0.5):
    return x * by


def images(n=12):
    return torch.randint(0, 256, (n, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(*transforms, x=None, noise=NOISE, **ours):
    return Augment(transforms=transforms, **ours)(images() if x is None else x, noise)


def test_bytes_are_numbers_from_0_to_1_for_a_function_and_raw_values_again_behind_it():
    seen = []
    found = changed(lambda x: seen.append(x) or x)
    assert torch.equal(seen[0], images() / 255)
    torch.testing.assert_close(found, images().float(), rtol=1e-6, atol=1e-4)
    floats = torch.randn(4, 7)
    changed(lambda x: seen.append(x) or x, x=floats)
    assert torch.equal(seen[1], floats), "other samples are given as they are"


def test_ours_come_first_and_functions_in_their_order():
    found = changed(darken, lambda x: x + 0.25, flip=True)
    expected = (Augment(flip=True)(images(), NOISE) / 255 * 0.5 + 0.25) * 255
    torch.testing.assert_close(found, expected)


def test_draws_are_by_key_and_generators_are_left_alone():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    first = changed(with_every_generator, with_every_generator)
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(changed(with_every_generator, with_every_generator), first)
    assert not torch.equal(changed(with_every_generator, with_every_generator, noise=NOISE.fold("other")), first)
    once = changed(with_every_generator)
    assert not torch.allclose(first - once, once - images()), "each function has a key of its own"
    torch.set_rng_state(before[0]), random.setstate(before[1]), np.random.set_state(before[2])  # noqa: NPY002
    changed(with_every_generator)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert np.array_equal(before[2][1], after[2][1])


def test_one_draw_for_a_batch_or_one_for_each_sample():
    x = images(200)
    flips = [
        (changed(f, x=x) - x.flip(-1)).flatten(1).abs().amax(1) < 1e-3 for f in (RandomFlip(), PerSample(RandomFlip()))
    ]
    assert flips[0].all() or not flips[0].any()
    assert 60 < int(flips[1].sum()) < 140


def test_parts_of_a_batch_are_changed_as_the_whole(digits_data):
    split = digits_data.train.take(torch.arange(64))
    augment = Augment(shift=1, transforms=(Jitter(),))
    batches = Batches(split, Preprocess.of(digits_data, split), 31, augment=augment, seed=3)
    for whole, *parts in zip(batches.epoch(1), *(batches.epoch(1, part=(rank, 3)) for rank in range(3)), strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.y for part in parts]), whole.y)


def test_a_resume_is_exact_with_functions(tmp_path, monkeypatch):
    def fit(name, **options):
        augment = [{"shift": 1, "mixup": 0.2}, Jitter(), PerSample(RandomFlip()), with_every_generator]
        return bpfree.fit("mlp", "digits", epochs=2, augment=augment, out=tmp_path / name, **options)

    whole = fit("whole")
    with power_cut(monkeypatch, 27), pytest.raises(RuntimeError):
        fit("torn")
    with pytest.raises(UserError, match="its augment came from Python as objects"):
        resume(tmp_path / "torn")
    fit("torn", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
    plain = bpfree.fit("mlp", "digits", epochs=2, augment={"shift": 1, "mixup": 0.2}, out=tmp_path / "plain")
    assert plain.metrics[0]["train"]["loss"] != whole.metrics[0]["train"]["loss"]
    names = [spec["name"] for spec in bpfree.load(tmp_path / "whole").config.data.augment.transforms]
    assert names == [f"tests.data.test_transforms:{name}" for name in ("Jitter", "RandomFlip", "with_every_generator")]
    assert torch.equal(bpfree.load(tmp_path / "whole").predict(whole.test.x), whole.predict(whole.test.x))


def test_an_estimator_for_scikit_learn_takes_them_too(digits_data):
    from bpfree.sklearn import BPFreeClassifier

    seen = []
    estimator = BPFreeClassifier(epochs=1, options={"augment": lambda x: seen.append(len(x)) or x})
    x, y = digits_data.train.x[:200].flatten(1).numpy(), digits_data.train.y[:200].numpy()
    estimator.fit(x, y)
    before = len(seen)
    assert before > 0
    estimator.partial_fit(x, y)
    assert len(seen) == before + 200 // 32, "a call for each batch"


def test_a_config_names_functions_and_classes(tmp_path, monkeypatch):
    name = "tests.data.test_transforms"
    text = f"data.augment.transforms=[{{name: '{name}:RandomFlip', p: 0.9, per_sample: true}}, '{name}:darken']"
    config = load_config("digits/dfa", [text, "train.epochs=2", "data.augment.shift=1"])
    with power_cut(monkeypatch, 27), pytest.raises(RuntimeError):
        train(config, out=tmp_path / "run")
    with pytest.raises(UserError, match=rf"found '{name}:RandomFlip' in .* It is not executed"):
        resume(tmp_path / "run")
    resume(tmp_path / "run", trust=True)
    functions = [PerSample(RandomFlip(0.9)), darken]
    bpfree.fit(
        config.net, "digits", "dfa", epochs=2, optimizer=config.optimizer, schedule=config.schedule,
        augment=[{"shift": 1}, *functions], out=tmp_path / "python", batch_size=config.data.batch_size,
    )  # fmt: skip
    assert same(weights(tmp_path / "run"), weights(tmp_path / "python"))
    assert bpfree.load(tmp_path / "run").result["test"], "predictions need no transform"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blur", "found 'blur', allowed: package.module:name of a function or a class"),
        ("tests.data.test_transforms:blur", "cannot be imported"),
        ({"name": "tests.data.test_transforms:RandomFlip", "q": 1}, r"unknown key 'data.augment.transforms.q'"),
        ("tests.data.test_transforms:NOISE", "NOISE is Noise, allowed: a function"),
        ("torch.nn:Linear", "in_features: missing"),
    ],
)
def test_specs_that_do_not_hold(spec, message):
    with pytest.raises(UserError, match=message):
        make_transform(spec)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("strong", "augment: found 'strong', allowed: a section"),
        (RandomFlip, "augment: found the class RandomFlip, allowed"),
        ([darken, {"flip": True}], "found a section behind another element"),
        ([{"flap": True}], r"unknown key 'data.augment.flap'"),
        (lambda x: x[:, :, 1:], r"<lambda> returned \[64, 1, 7, 8\] on cpu for samples \[64, 1, 8, 8\]"),
        (lambda x: None, "<lambda> returned NoneType for samples"),
    ],
)
def test_what_is_refused(augment, message):
    with pytest.raises(UserError, match=message):
        bpfree.fit("mlp", "digits", epochs=1, augment=augment)


def test_samples_of_several_inputs_are_not_changed():
    with pytest.raises(UserError, match="data.augment.transforms: samples are several inputs"):
        Augment(transforms=(darken,)).refuse_several()


def test_what_a_config_says_of_a_function():
    assert described(darken) == {"name": "tests.data.test_transforms:darken"}
    assert described(PerSample(RandomFlip(0.2))) == {
        "name": "tests.data.test_transforms:RandomFlip",
        "per_sample": True,
    }
    assert repr(PerSample(darken)) == "PerSample(darken)"
    with pytest.raises(UserError, match="PerSample: found int, allowed: a function of one sample"):
        PerSample(3)
