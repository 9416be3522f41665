"""Greedy supervised learning: a linear classifier behind the mean over places of each segment."""

import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Classify, Language, Segment
from bpfree.types import Batch
from tests.helpers import TASK, bound, gradients, same

RULE = RULES["greedy"]


def images(side=8, channels=1):
    torch.manual_seed(3)
    return Batch(torch.randn(6, channels, side, side, dtype=torch.float64), torch.arange(6) % 10)


def net_of(name, shape, **options):
    torch.manual_seed(0)
    return NETS[name](shape, 10, **options).double()


def test_the_equation_on_maps():
    """Segments and W_k minimise CE(W_k mean(h_k), y), written out by hand."""
    batch = images()
    net = net_of("conv", (1, 8, 8), channels=[4, 6], hidden=8)
    rule = bound(RULE(), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    h1 = net.act1(net.conv1(batch.x))
    h2 = net.act2(net.conv2(net.pool1(h1.detach())))
    weights = [head[-1] for head in rule.heads]
    losses = [F.cross_entropy(w(h.mean((2, 3))), batch.y) for w, h in zip(weights, (h1, h2), strict=True)]
    losses.append(F.cross_entropy(net.fc2(net.act(net.fc1(net.pool2(h2.detach()).flatten(1)))), batch.y))
    parameters = [*net.parameters(), *rule.parameters()]
    for p, g in zip(parameters, torch.autograd.grad(sum(losses), parameters), strict=True):
        torch.testing.assert_close(p.grad, g)


def test_tokens_are_normalised_by_the_norm_of_the_net():
    torch.manual_seed(0)
    net = NETS["transformer"]((8,), 11, each_step=True, width=16, depth=3, heads=2).double()
    batch = Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))
    rule = bound(RULE(), net, batch, Language(11))
    assert [type(layer) for layer in rule.heads[0]] == [torch.nn.RMSNorm, torch.nn.Linear]
    h = net.block1(net.embed(batch.x))
    loss = F.cross_entropy(rule.heads[0](h).flatten(0, 1), batch.y.flatten())
    scalars = rule.gradients(net, Language(11), batch, Noise())
    torch.testing.assert_close(scalars["loss/block1"], loss.detach())
    vit = net_of("vit", (1, 8, 8), width=16, depth=3, heads=2)
    rule = bound(RULE(), vit, images())
    assert isinstance(rule.heads[0][0], torch.nn.LayerNorm)
    assert rule.heads[0](vit.block1(vit.patches(images().x))).shape == (6, 10)


def test_pixels_have_a_1x1_convolution_that_does_not_start_at_zero():
    torch.manual_seed(0)
    conv = [torch.nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 4), (4, 5), (5, 3))]
    net = torch.nn.Sequential(conv[0], torch.nn.ReLU(), conv[1], torch.nn.ReLU(), conv[2]).double()
    batch = Batch(images().x, torch.randint(3, (6, 8, 8)))
    task = Segment(3, (8, 8))
    rule = bound(RULE(), net, batch, task)
    assert rule.heads[0].conv.weight.shape == (3, 4, 1, 1)
    assert rule.heads[0].conv.weight.abs().min() > 0
    rule.gradients(net, task, batch, Noise())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*net.parameters(), *rule.parameters()])


@pytest.mark.parametrize("name", ["greedy", "dgl", "infopro", "auglocal"])
def test_without_taps_each_of_the_family_is_backprop_to_the_bit(name):
    batch, found = images(), []
    net = net_of("resnet32", (1, 8, 8), width=4)
    for rule in (RULES[name](taps=0), RULES["backprop"]()):
        bound(rule, net, batch)
        net.zero_grad()
        rule.gradients(net, TASK, batch, Noise(0, 0))
        found.append(gradients(net))
    assert same(*found)


@pytest.mark.parametrize("name", ["greedy", "dgl", "infopro", "auglocal"])
def test_no_gradient_crosses_a_tap(name):
    """With other weights in its head, a segment writes other gradients, and the segments around it write the same."""
    batch, found = images(), []
    for scale in (1.0, 3.0):
        net = net_of("resnet32", (1, 8, 8), width=4)
        rule = bound(RULES[name](taps=3), net, batch)
        with torch.no_grad():
            for p in rule.heads[1].parameters():
                p.mul_(scale)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        found.append([[p.grad.clone() for p in unit] for unit in rule.units(net)])
    assert len(found[0]) == 4
    changed = [not all(map(torch.equal, *unit)) for unit in zip(*found, strict=True)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("name", ["greedy", "dgl", "infopro", "auglocal"])
def test_the_family_trains_residual_blocks_as_segments(name):
    """One step down the gradient lowers the loss of each segment."""
    batch = images()
    net = net_of("resnet32", (1, 8, 8), width=4)
    rule = bound(RULES[name](taps=3), net, batch)
    parameters = [p for unit in rule.units(net) for p in unit]
    losses = []
    for _ in range(2):
        losses.append(rule.gradients(net, Classify(10), batch, Noise(0, 0)))
        with torch.no_grad():
            for p in parameters:
                p -= 1e-4 * p.grad
                p.grad = None
    for key in ("loss/block1_3", "loss"):
        assert losses[1][key] < losses[0][key]
