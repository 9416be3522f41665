"""SoftHebb: its gradient is the formula of the paper for each kind of layer, and units come to rest at their radius."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, Trainer
from bpfree.rules import SoftHebb
from bpfree.types import Batch
from tests.helpers import TASK, bound


def step_of_the_paper(w, x, t):
    """The step of each row of w [K, H] for inputs x [N, H], written with loops."""
    u = x @ w.T
    dw = torch.zeros_like(w)
    for n in range(len(x)):
        y = -torch.softmax(t * u[n], 0)
        y[u[n].argmax()] *= -1
        for k in range(len(w)):
            dw[k] += y[k] * (x[n] - u[n, k] * w[k])
    dw /= dw.abs().max()
    return (w.norm(dim=1, keepdim=True) - 1).abs().sqrt() * dw


def written(net, rule, batch):
    net.zero_grad()
    bound(rule, net, batch).gradients(net, TASK, batch, Noise())
    return net[0].weight.grad


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return Batch(torch.randn(6, 3, 8, 8).double(), torch.arange(6))


@pytest.mark.parametrize(("radius", "scale"), [(1.0, 1.0), (0.1, 0.5)])
def test_a_linear_layer_takes_the_step_of_the_paper(radius, scale, batch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 8 * 9, 10)).double()
    grad = written(net, SoftHebb(t=2.0, radius=radius, scale=scale), batch)
    w = net[0].weight.detach() / radius
    torch.testing.assert_close(grad, -scale * radius * step_of_the_paper(w, batch.x.reshape(-1, 8), 2.0))
    assert net[0].bias.grad is None


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_convolution_is_a_linear_layer_on_patches(mode, batch):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode=mode)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(80, 10)).double()
    grad = written(net, SoftHebb(t=2.0), batch)
    padded = F.pad(batch.x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    patches = F.unfold(padded, 3, stride=2).movedim(1, 2).reshape(-1, 27)
    step = step_of_the_paper(conv.weight.detach().flatten(1), patches, 2.0)
    torch.testing.assert_close(grad, -step.view_as(conv.weight))


def test_convolutions_learn_in_bfloat16_in_the_direction_of_float32(batch):
    steps = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 10))
        before = net[2].weight.detach().clone()
        Trainer(net, SoftHebb(), TASK, "sgd", compute=precision).step(Batch(batch.x.float(), batch.y))
        steps.append((net[2].weight.detach() - before).flatten())
    assert float(torch.cosine_similarity(*steps, dim=0)) > 0.9


def test_winners_come_to_the_radius(digits_data):
    """The decay pulls the length of units that win to the radius, from above as well as from below."""
    x = digits_data.train.x[:256].float().flatten(1) / 16
    batch = Batch(x, digits_data.train.y[:256])
    for radius in (0.1, 1.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
        trainer = Trainer(net, SoftHebb(radius=radius), TASK, {"name": "sgd", "lr": 0.05})
        for _ in range(300):
            trainer.step(batch)
        norms = net[0].weight.detach().norm(dim=1) / radius
        assert float((norms - 1).abs().min()) < 0.01
