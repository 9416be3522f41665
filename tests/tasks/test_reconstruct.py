"""Autoencoders: the second task, from the loss to the picture."""

from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import bpfree
from bpfree import Batch, Noise, UserError
from bpfree.diffusion import DiffusionRule
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.runs.config_file import load_config
from bpfree.tasks import Reconstruct
from tests.helpers import autograd_of, bound, denoiser_for, gradients, optimizer_for_any_task, same, zero_grad
from tests.test_cli import refused, shell

SHAPE = (1, 8, 8)
TASK = Reconstruct(SHAPE)
ABLE = [name for name, rule in RULES.items() if "reconstruct" in rule.tasks and not issubclass(rule, DiffusionRule)]


@pytest.fixture
def pictures(batch):
    return Batch(batch.x, (batch.x * 6 + 5) / 16)


def autoencoder(device="cpu", **options):
    torch.manual_seed(0)
    return NETS["mlp"](SHAPE, 64, hidden=[32, 12, 32], activation="tanh", **options).double().to(device)


def test_the_loss_is_the_mean_squared_error_behind_the_activation(pictures):
    out = torch.randn(32, 64, dtype=torch.float64).to(pictures.x)
    for output, g in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("linear", lambda out: out)):
        task = Reconstruct(SHAPE, output=output)
        expected = (g(out) - pictures.y.flatten(1)).square().mean()
        torch.testing.assert_close(task.loss(out, pictures), expected)
        torch.testing.assert_close(task.loss(out.view(32, 1, 8, 8), pictures), expected)
    assert TASK.dim == 64
    torch.testing.assert_close(TASK.target(pictures), pictures.y.flatten(1))


def test_dfa_with_the_true_downstream_product_is_backprop(pictures):
    """On a linear net, whatever the loss: here the error passes the derivative of the sigmoid."""
    net = autoencoder(pictures.x.device)
    for i in (1, 2, 3):
        setattr(net, f"act{i}", torch.nn.Identity())
    rule = bound(RULES["dfa"](), net, pictures, TASK)
    product = net.fc4.weight.detach()
    for index, layer in ((2, net.fc3), (1, net.fc2), (0, None)):
        rule.get_buffer(f"B{index}").copy_(product)
        product = product if layer is None else product @ layer.weight.detach()
    zero_grad(net)
    rule.gradients(net, TASK, pictures, Noise())
    for name, expected in autograd_of(TASK.loss(net(pictures.x), pictures), net).items():
        torch.testing.assert_close(net.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-14)


def test_local_minimises_the_error_of_its_fixed_decoder(pictures):
    net = autoencoder(pictures.x.device)
    rule = bound(RULES["local"](), net, pictures, TASK)
    rule.gradients(net, TASK, pictures, Noise())
    h1 = net.fc1(pictures.x.flatten(1)).tanh()
    h2 = net.fc2(h1.detach()).tanh()
    losses = [
        F.mse_loss(torch.sigmoid(h @ rule.get_buffer(f"C{i}").T), pictures.y.flatten(1)) for i, h in enumerate((h1, h2))
    ]
    expected = torch.autograd.grad(sum(losses), [net.fc1.weight, net.fc2.weight])
    torch.testing.assert_close(net.fc1.weight.grad, expected[0])
    torch.testing.assert_close(net.fc2.weight.grad, expected[1])


@pytest.mark.parametrize("name", ABLE)
def test_it_learns_to_rebuild(name, digits_data):
    net = {"name": "mlp", "hidden": [64, 16, 64], "activation": "tanh"}
    rule = {"name": name, "population": 16} if "population" in signature(RULES[name]).parameters else name
    x, optimizer = digits_data.train.x, optimizer_for_any_task(name, lr=5e-3)
    run = bpfree.fit(net, x, rule, epochs=8, optimizer=optimizer, task="reconstruct", test=digits_data.test.x)
    losses = [record["validation"]["loss"] for record in run.metrics]
    assert losses[-1] < 0.75 * losses[0]
    assert run.predict(x[:3]).shape == (3, 1, 8, 8)
    assert set(run.result["test"]) == {"loss"}


@pytest.mark.parametrize("name", [name for name in RULES if "reconstruct" not in RULES[name].tasks])
def test_rules_that_read_labels_refuse_before_anything_is_loaded(name, pictures, tmp_path):
    message = f"rule '{name}' learns from class labels, so it cannot reconstruct"
    with pytest.raises(UserError, match=message):
        load_config(f"digits/{name}", ["task=reconstruct"])
    assert message in refused("train", f"digits/{name}", "task=reconstruct", "--out", tmp_path / "run")
    denoises = issubclass(RULES[name], DiffusionRule)
    net = NETS["denoiser"](SHAPE, 64, **denoiser_for(name)) if denoises else autoencoder()
    with pytest.raises(UserError, match="cannot reconstruct"):
        bpfree.Trainer(net.double(), name, TASK).step(Batch(pictures.x.cpu(), pictures.y.cpu()))


def test_flat_equals_fast(pictures):
    found = []
    for memory in ("fast", "flat"):
        net = autoencoder(pictures.x.device, batch_norm=True, dropout=0.2)
        rule = bound(RULES["dfa"](memory=memory), net, pictures, TASK)
        rule.gradients(net, TASK, pictures, Noise())
        found.append(gradients(net))
    assert same(*found)


@pytest.mark.parametrize(
    ("scale", "output"),
    [(lambda x: x / 16, "sigmoid"), (lambda x: x / 8 - 1, "tanh"), (lambda x: x - 5, "linear"), (None, "sigmoid")],
)
def test_the_output_activation_follows_the_range_of_the_data(scale, output, digits_data, tmp_path, undrawn):
    x = digits_data.train.x if scale is None else scale(digits_data.train.x.float())
    run = bpfree.fit("mlp", x, "dfa", epochs=1, task="reconstruct", out=tmp_path / "run")
    assert run.task.output == output
    loaded = bpfree.load(tmp_path / "run")
    assert loaded.task.output == output
    assert torch.equal(loaded.predict(x[:5]), run.predict(x[:5]))
    assert (
        bpfree.fit("mlp", x, "dfa", epochs=1, task={"name": "reconstruct", "output": "linear"}).task.output == "linear"
    )


def test_a_run_shows_originals_and_reconstructions(tmp_path, digits_data):
    folder = tmp_path / "run"
    result = shell("train", "digits/dfa_reconstruct", "train.epochs=3", "--out", folder)
    assert result.stdout.startswith("dfa on digits: test loss 0.")
    grid = np.asarray(Image.open(folder / "plots" / "reconstructions.png"))
    assert grid.std() > 20, "two rows of real digits, not a blank page"
    run = bpfree.load(folder)
    np.save(tmp_path / "x.npy", digits_data.test.x[:2].numpy())
    lines = shell("predict", folder, tmp_path / "x.npy").stdout.splitlines()
    assert [line.split("\t")[0].endswith(f"x.npy[{i}]") for i, line in enumerate(lines)] == [True, True]
    expected = (run.predict(digits_data.test.x[:1]) - digits_data.test.x[:1] / 16).square().mean()
    assert float(lines[0].split("mse ")[1]) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(UserError, match="has no classes"):
        run.predict_proba(digits_data.test.x)


def test_what_cannot_be_rebuilt_is_refused(digits_data):
    words = torch.nn.Sequential(torch.nn.Embedding(40, 2), torch.nn.Flatten(), torch.nn.Linear(8, 4))
    with pytest.raises(UserError, match="samples that are tokens"):
        bpfree.fit(words, torch.arange(40).view(10, 4), "backprop", task="reconstruct")
    with pytest.raises(UserError, match=r"samples of shape \[1, 8, 8\] need \[64, 64\]"):
        bpfree.fit(NETS["mlp"](SHAPE, 10), digits_data.train.x, "dfa", task="reconstruct")
    with pytest.raises(UserError, match="allowed: a pair"):
        bpfree.fit("mlp", digits_data.train.x, "dfa")
