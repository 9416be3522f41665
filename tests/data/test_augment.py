"""Random changes to images: each against a plain loop or a property, by key, and what is refused."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import bpfree
from bpfree import Batch, Noise, UserError
from bpfree.api import resume
from bpfree.data import Augment, Batches, Preprocess, Split
from bpfree.data.augment import PixelValues, _mixture
from bpfree.noise import counting_everywhere
from bpfree.rules import RULES
from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from bpfree.tasks import Classify
from tests.helpers import TASK, net_for, own_net, same
from tests.runs.test_run import BLACK_BOX, power_cut, weights
from tests.test_cli import refused

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")

NOISE = Noise(4, 2).fold("batch", 7)
ALL = {"shift": 2, "flip": True, "crop": 0.5, "brightness": 0.4, "contrast": 0.4, "cutout": 3}


def images(n=40, channels=3, high=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (n, channels, 9, 8), dtype=torch.uint8, generator=generator)


def before(x, shift, flip, noise):
    """Shift and flip as they were when there was nothing else."""
    generator = noise.fold("augment").generator()
    b, _, height, width = x.shape
    rows = torch.arange(height).expand(b, height)
    columns = torch.arange(width).expand(b, width)
    if flip:
        flipped = torch.rand(b, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    if shift:
        moves = torch.randint(0, 2 * shift + 1, (2, b, 1), generator=generator)
        rows, columns = rows + moves[0], columns + moves[1]
        x = torch.nn.functional.pad(x, [shift] * 4)
    sample = torch.arange(b).view(b, 1, 1)
    return x.permute(0, 2, 3, 1)[sample, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (1, False), (2, True)])
def test_shift_and_flip_are_to_the_bit_what_they_were(shift, flip):
    x = images()
    found = Augment(shift, flip)(x, NOISE)
    assert found.dtype == torch.uint8
    assert torch.equal(found, before(x, shift, flip, NOISE))


def test_shift_and_flip_draw_the_same_beside_others():
    x = images().float()
    beside = Augment(2, True, brightness=1e-9)(x, NOISE)
    torch.testing.assert_close(beside, before(x, 2, True, NOISE), atol=1e-3, rtol=0)


def test_nothing_asked_for_is_the_samples_themselves():
    x, y = torch.zeros(5, 7), torch.zeros(5, dtype=torch.int64)
    assert Augment()(x, NOISE) is x
    assert Augment().mix(x, y, NOISE, 3) == (x, y)


@pytest.fixture(params=[nullcontext, counting_everywhere], ids=["generator", "counted"])
def both_draws(request):
    """Numbers from a generator, as on a CPU, and computed from the key, as on other devices."""
    with request.param():
        yield


@pytest.mark.usefixtures("both_draws")
@pytest.mark.parametrize("options", [{key: value} for key, value in ALL.items()] + [ALL], ids=str)
def test_the_key_decides_and_images_differ(options, device):
    same_image = images(1).expand(64, -1, -1, -1)
    augment = Augment(**options)
    found = augment(same_image, NOISE)
    assert found.shape == same_image.shape
    assert torch.equal(found, augment(same_image, Noise(4, 2).fold("batch", 7)))
    assert not torch.equal(found, augment(same_image, Noise(4, 2).fold("batch", 8)))
    different = {image.numpy().tobytes() for image in found}
    assert len(different) == 2 if options == {"flip": True} else len(different) > 20
    elsewhere = augment(same_image.to(device), NOISE)
    assert elsewhere.device.type == device.type
    with counting_everywhere() if device.type != "cpu" else nullcontext():
        torch.testing.assert_close(elsewhere.cpu(), augment(same_image, NOISE), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("key", ["crop", "brightness", "contrast", "cutout"])
def test_options_draw_apart_from_each_other(key, monkeypatch):
    """So that one can be switched off without another set of crops, say; brightness and contrast are drawn together."""
    keys = {"crop": "crop", "brightness": "light", "contrast": "light", "cutout": "cutout"}
    drawn = []
    real = Noise.generator
    monkeypatch.setattr(Noise, "generator", lambda self, *args: drawn.append(self.units) or real(self, *args))
    Augment(**{key: ALL[key]})(images(), NOISE)
    assert {units[:4] for units in drawn} == {("batch", 7, "augment", keys[key])}


@pytest.mark.usefixtures("both_draws")
def test_brightness_stretches_from_black_and_keeps_within_the_limits():
    x = images(300, high=100).float()
    found = Augment(brightness=0.5, values=PixelValues(0.0, 100.0))(x, NOISE)
    assert float(found.min()) >= 0
    assert float(found.max()) == 100
    inside = (found < 100) & (x > 0)
    factors = (found / x).where(inside, torch.nan).flatten(1).nanmedian(1).values
    torch.testing.assert_close(found, (x * factors.view(-1, 1, 1, 1)).clamp(max=100), atol=1e-3, rtol=1e-4)
    assert 0.5 <= float(factors.min()) < 0.52
    assert 1.45 < float(factors.max()) <= 1.5


def test_brightness_of_values_that_may_be_negative():
    x = torch.full((50, 1, 4, 4), -1.0)
    assert torch.equal(Augment(brightness=1.0, values=PixelValues(-1.0, 1.0))(x, NOISE), x), "black stays black"


@pytest.mark.usefixtures("both_draws")
def test_contrast_keeps_the_mean_of_an_image():
    x = 100 + images(200, high=50).float()
    found = Augment(contrast=1.0)(x, NOISE)
    torch.testing.assert_close(found.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-2, rtol=0)
    stretched = found.std((1, 2, 3)) / x.std((1, 2, 3))
    assert float(stretched.min()) < 0.05
    assert float(stretched.max()) > 1.9
    assert torch.allclose(found, found.clamp(0, 255))


@pytest.mark.usefixtures("both_draws")
def test_cutout_is_a_square_of_the_mean_at_any_centre():
    mean = (11.5, 12.5, 13.5)
    x = torch.zeros(2000, 3, 9, 8)
    found = Augment(cutout=3, values=PixelValues(mean=mean))(x, NOISE)
    hidden = found[:, 0] != 0
    assert torch.equal(found, torch.where(hidden[:, None], torch.tensor(mean).view(1, 3, 1, 1), x))
    sizes = set()
    for mask in hidden:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert int(mask.sum()) == len(rows) * len(columns)
        sizes.add((len(rows), len(columns)))
    assert sizes == {(a, b) for a in (2, 3) for b in (2, 3)}, "at the edge a part lies beyond the image"
    often = hidden.float().mean(0)
    assert float(often[4, 4]) == pytest.approx(9 / 72, abs=0.03)


def test_a_crop_of_everything_is_the_image():
    x = images().float()
    torch.testing.assert_close(Augment(crop=1 - 1e-6)(x, NOISE), x, atol=0.01, rtol=0)


@pytest.mark.usefixtures("both_draws")
def test_crops_against_a_plain_computation():
    """On an image whose value is its place, a crop tells where it was cut and how large."""
    ramp = torch.arange(32.0).expand(200, 2, 32, 32).clone()
    ramp[:, 1] = ramp[:, 0].transpose(1, 2)
    found = Augment(crop=0.25)(ramp, NOISE)
    steps = found[:, 0, 16, 20] - found[:, 0, 16, 12]
    side = steps / 8  # in units of the image's
    torch.testing.assert_close((found[:, 1, 20, 16] - found[:, 1, 12, 16]) / 8, side, atol=1e-4, rtol=0)
    assert 0.5 <= float(side.min()) < 0.53
    assert 0.97 < float(side.max()) <= 1
    area = side.square()
    assert float(area.mean()) == pytest.approx(0.625, abs=0.04), "uniform from 0.25 to 1"
    left = found[:, 0, 16, 12] + 0.5 - 12.5 * side
    assert float(left.min()) > -1e-3
    assert bool((left + 32 * side < 32 + 1e-3).all())
    room = (left / (32 * (1 - side)))[side < 0.9]
    assert float(room.mean()) == pytest.approx(0.5, abs=0.07)
    assert float(room.std()) == pytest.approx(12**-0.5, abs=0.05)


@pytest.mark.usefixtures("both_draws")
@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0, 1000.0, 1e-12])
def test_mixup_mixes_samples_and_labels_by_the_same_shares(alpha):
    x = torch.eye(12).repeat(40, 1) * 200
    y = torch.arange(12).repeat(40)
    mixed, shares = Augment(mixup=alpha).mix(x.to(torch.uint8), y, NOISE, 12)
    torch.testing.assert_close(mixed, 200 * shares, atol=1e-3, rtol=0)
    torch.testing.assert_close(shares.sum(1), torch.ones(480))
    own = shares[torch.arange(480), y]
    several = shares.max(1).values < 1
    if alpha >= 0.2:
        assert float(own[several].std()) == pytest.approx((1 / (4 * (2 * alpha + 1))) ** 0.5, rel=0.25)  # of Beta
    assert float(several.float().mean()) > 0.8 or alpha < 1
    again = Augment(mixup=alpha).mix(x.to(torch.uint8), y, NOISE, 12)
    assert torch.equal(mixed, again[0])
    assert torch.equal(shares, again[1])


def test_mixup_is_a_loss_between_those_of_both_labels():
    task, out = Classify(4), torch.randn(6, 4, dtype=torch.float64)
    a, b = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 3, 0, 2, 2])
    shares = 0.3 * torch.nn.functional.one_hot(a, 4).double() + 0.7 * torch.nn.functional.one_hot(b, 4)
    mixed = task.loss(out, Batch(out, shares))
    torch.testing.assert_close(mixed, 0.3 * task.loss(out, Batch(out, a)) + 0.7 * task.loss(out, Batch(out, b)))
    assert torch.equal(task.target(Batch(out, shares)), shares)
    right = (out.argmax(1) == b).double().mean()
    assert float(task.metrics(out, Batch(out, shares))["accuracy"]) == pytest.approx(float(right))
    with pytest.raises(UserError, match=r"labels: found torch.float32 of shape \[6\], allowed: class indices, int64"):
        task.loss(out, Batch(out, a.float()))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0, 200.0])
def test_shares_on_a_device_are_from_the_beta_distribution(alpha):
    """Their mean is 1/2; the second and fourth moments about it have simple forms, too."""
    n = 50_000
    with counting_everywhere():
        shares, other = _mixture(alpha, NOISE, torch.zeros(n))
    assert torch.equal(other.sort().values, torch.arange(n))
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
    deviation = shares.double() - 0.5
    assert float(deviation.mean()) == pytest.approx(0, abs=5 * float(deviation.std()) / n**0.5)
    assert float(deviation.square().mean()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert float(deviation.pow(4).mean()) == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.06)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_with_mixup_or_says_that_it_does_not(name, digits_data, batch, tmp_path):
    net = own_net(name) or {"name": "mlp", "activation": "tanh"}
    rule = {"name": name, **BLACK_BOX.get(name, {})}
    values = {"data": {"name": "digits", "augment": {"mixup": 0.4}}, "net": net, "rule": rule, "train": {"epochs": 1}}
    soft = Batch(batch.x, 0.5 * (TASK.target(batch) + TASK.target(batch).roll(1, 0)))
    if RULES[name].takes_soft_labels:
        losses = [record["train"]["loss"] for record in train(parse(values)).metrics]
        assert np.isfinite(losses).all()
        bpfree.Trainer(net_for(name, batch.x.device), name, TASK).step(soft)
        return
    message = f"rule '{name}' reads one class for each sample, but data.augment.mixup gives shares of the classes"
    with pytest.raises(UserError, match=message) as caught:
        parse(values)
    assert "\n" not in str(caught.value)
    assert message in refused("train", f"digits/{name}", "data.augment.mixup=0.4", "--out", tmp_path / "run")
    with pytest.raises(UserError, match="reads one class for each sample"):
        bpfree.Trainer(net_for(name, batch.x.device), name, TASK).step(soft)


def test_a_rule_from_python_that_does_not_take_mixup(digits_data):
    with pytest.raises(UserError, match="reads one class for each sample"):
        bpfree.fit("mlp", digits_data.train, RULES["forward_forward"](), epochs=1, augment={"mixup": 0.2})


def test_the_larger_share_is_the_true_class_for_trackers():
    watch = {"name": "segment_accuracy", "every": 5}
    run = bpfree.fit("mlp", "digits", "mono_forward", epochs=3, augment={"mixup": 0.2}, trackers=[watch])
    assert run.tracked[-1]["values"]["output"] > 0.3


def test_autoencoders_rebuild_what_they_were_shown(digits_data):
    """Augmented and mixed alike."""
    preprocess = Preprocess.of(digits_data, digits_data.train)
    augment = Augment(**ALL, mixup=0.5, values=PixelValues.of(preprocess))
    split = digits_data.train
    for batch in Batches(split, preprocess, 64, augment=augment, seed=0, rebuild=True).epoch():
        mean, std = preprocess.mean[0], preprocess.std[0]
        torch.testing.assert_close(batch.y * preprocess.white, batch.x * std + mean, atol=1e-4, rtol=1e-4)
    run = bpfree.fit("mlp", "digits", "dfa", epochs=1, task="reconstruct", augment={"mixup": 0.5, **ALL})
    assert set(run.result["test"]) == {"loss"}


def test_evaluation_sees_the_samples_as_they_are(digits_data):
    preprocess = Preprocess.of(digits_data, digits_data.train)
    plain = Batches(digits_data.test, preprocess, 50)
    augmented = Batches(digits_data.test, preprocess, 50, augment=Augment(**ALL, mixup=1.0))
    for a, b in zip(plain.epoch(), augmented.epoch(), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    run = bpfree.fit("mlp", "digits", "backprop", epochs=1, augment={"mixup": 1.0, **ALL})
    assert run.result["test"] == run.evaluate((digits_data.test.x, digits_data.test.y))


def test_an_epoch_starts_in_the_middle_with_the_same_draws(digits_data):
    preprocess = Preprocess.of(digits_data, digits_data.train)
    batches = Batches(digits_data.train, preprocess, 64, augment=Augment(**ALL, mixup=0.3), seed=5)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=9))
    for a, b in zip(whole[9:], rest, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


@pytest.mark.parametrize("rule", ["backprop", "mono_forward"])
def test_a_resume_with_all_of_them_is_exact(rule, tmp_path, monkeypatch):
    values = {
        "data": {
            "name": "digits",
            "fraction": 0.6,
            "label_noise": 0.1,
            "skew": {"factor": 5},
            "augment": {"mixup": 0.3, **ALL},
        },
        "net": {"name": "conv", "channels": [6, 5], "hidden": 12},
        "rule": rule,
        "train": {"epochs": 4},
    }
    train(parse(values), out=tmp_path / "whole")
    with power_cut(monkeypatch, 13, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        train(parse(values), out=tmp_path / "torn")
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_limits_and_mean_are_those_of_the_data(digits_data):
    config = load_config("digits/dfa", ["data.augment.cutout=2", "data.augment.brightness=0.5"])
    made = config.data.augment.build(Preprocess.of(digits_data, digits_data.train))
    assert (made.values.black, made.values.white) == (0.0, 16.0)
    assert made.values.mean == pytest.approx((float(digits_data.train.x.float().mean()),))
    floats = Split(digits_data.train.x.float() / 8 - 1, digits_data.train.y)
    values = config.data.augment.build(Preprocess.of(replace(digits_data, train=floats, test=None), floats)).values
    assert (values.black, values.white) == (-1, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augment.crop=0", "data.augment.crop: found 0, allowed: greater than 0"),
        ("data.augment.crop=1.5", "data.augment.crop: found 1.5, allowed: less than or equal to 1"),
        ("data.augment.crop=.nan", "data.augment.crop: found nan, allowed: "),
        ("data.augment.brightness=1.1", "data.augment.brightness: found 1.1, allowed: less than or equal to 1"),
        ("data.augment.contrast=-1", "data.augment.contrast: found -1, allowed: greater than or equal to 0"),
        ("data.augment.cutout=-2", "data.augment.cutout: found -2, allowed: greater than or equal to 0"),
        ("data.augment.cutout=2.5", "data.augment.cutout: found 2.5, allowed: a valid integer"),
        ("data.augment.mixup=-0.1", "data.augment.mixup: found -0.1, allowed: greater than or equal to 0"),
        ("data.augment.mixup=.inf", "data.augment.mixup: found inf, allowed: "),
        ("data.augment.cutot=2", r"unknown key 'data.augment.cutot'. Did you mean 'data.augment.cutout'\?"),
    ],
)
def test_values_that_cannot_be(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("digits/dfa", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "samples", "message"),
    [
        (
            {"crop": 0.5, "flip": True},
            torch.zeros(4, 9),
            r"data.augment.flip, data.augment.crop: samples have the shape \[9\], allowed",
        ),
        (
            {"cutout": 3},
            torch.zeros(4, 1, 3, 8),
            "data.augment.cutout: found 3, allowed: less than an image's side, 3 pixels",
        ),
        (
            {"shift": 8},
            torch.zeros(4, 1, 8, 9),
            "data.augment.shift: found 8, allowed: less than an image's side, 8 pixels",
        ),
        (
            {"contrast": 0.5},
            torch.zeros(4, 1, 3, 8).long(),
            "data.augment.contrast: samples are torch.int64, which are tokens",
        ),
    ],
)
def test_samples_that_cannot_be(options, samples, message):
    with pytest.raises(UserError, match=message):
        Augment(**options)(samples, NOISE)


def test_mixup_of_names_or_numbers_is_refused():
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="data.augment.mixup: samples are torch.int64, which are tokens"):
        Augment(mixup=1.0).mix(torch.zeros(4, 9).long(), y, NOISE, 2)
    with pytest.raises(UserError, match=r"data.augment.mixup: targets are torch.float32 of shape \[4\]"):
        Augment(mixup=1.0).mix(torch.zeros(4, 9), y.float(), NOISE, 2)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    line = refused("train", "digits/dfa", "data.augment.cutout=8", "--out", tmp_path / "run")
    assert "data.augment.cutout: found 8, allowed: less than an image's side, 8 pixels" in line
    assert not (tmp_path / "run").exists()


OLD = {"shift": 1, "flip": True, "mixup": 0.3}


def test_keys_of_earlier_versions_are_the_new_ones_and_warn():
    new = parse({"data": {"name": "digits", "augment": OLD}})
    with pytest.warns(DeprecationWarning, match=r"data\.(shift|flip|mixup) is now data\.augment\.\1$"):
        assert parse({"data": {"name": "digits", **OLD}}) == new
    with pytest.warns(DeprecationWarning, match=r"data\.(shift|flip|mixup) is now data\.augment\.\1$"):
        old = bpfree.fit("mlp", "digits", "backprop", epochs=1, **OLD)
    run = bpfree.fit("mlp", "digits", "backprop", epochs=1, augment=OLD)
    assert old.config == run.config
    assert old.metrics[0]["train"] == run.metrics[0]["train"]
    with pytest.raises(UserError, match=r"found both shift and augment\.shift"):
        parse({"data": {"shift": 1, "augment": {"shift": 2}}})


def test_an_old_override_takes_the_place_of_the_new_key():
    with pytest.warns(DeprecationWarning, match=r"data\.shift is now data\.augment\.shift"):
        assert load_config("mnist/dfa", ["data.shift=0"]).data.augment.shift == 0


def test_a_run_that_an_earlier_version_wrote_resumes(tmp_path, monkeypatch):
    values = {"data": {"name": "digits", "augment": OLD}, "rule": "backprop", "train": {"epochs": 2}}
    train(parse(values), out=tmp_path / "whole")
    with power_cut(monkeypatch, 30, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        train(parse(values), out=tmp_path / "torn")
    config, state = tmp_path / "torn" / "config.yaml", tmp_path / "torn" / "last.ckpt" / "state.json"
    flat, saved = yaml.safe_load(config.read_text()), json.loads(state.read_text())
    for old in (flat, saved["config"]):
        del old["data"]["augment"]["transforms"]  # is new
        old["data"] |= old["data"].pop("augment")
    config.write_text(yaml.safe_dump(flat))
    state.write_text(json.dumps(saved))
    with pytest.warns(DeprecationWarning, match="is now data.augment"):
        resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
