"""Decoupled greedy learning: the head of the paper, and those for other features."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import DGL
from bpfree.tasks import Language, Segment
from bpfree.types import Batch
from tests.helpers import TASK, bound


def test_the_head_of_the_paper():
    """A quarter of each side, three 1x1 convolutions, 2x2 places, and an MLP of three hidden layers."""
    torch.manual_seed(0)
    net = NETS["resnet32"]((3, 32, 32), 10, width=4).double()
    batch = Batch(torch.randn(5, 3, 32, 32, dtype=torch.float64), torch.arange(5))
    rule = bound(DGL(), net, batch)
    head = rule.heads[-1]  # of 16 channels at 8x8 places
    shapes = [tuple(m.weight.shape) for m in head if isinstance(m, nn.Conv2d | nn.Linear)]
    assert shapes == [(16, 16, 1, 1)] * 3 + [(64, 64)] * 3 + [(10, 64)]
    h = torch.randn(5, 16, 8, 8, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(h, 2)
    for i in range(3):
        expected = F.relu(F.batch_norm(head[1 + 3 * i](expected), None, None, training=True))
    expected = F.adaptive_avg_pool2d(expected, 2).flatten(1)
    for i in range(3):
        expected = F.relu(F.batch_norm(head[12 + 3 * i](expected), None, None, training=True))
    torch.testing.assert_close(head(h), head[-1](expected))
    loss = F.cross_entropy(rule.heads[0](net.act(net.norm(net.conv(batch.x)))), batch.y)
    torch.testing.assert_close(rule.gradients(net, TASK, batch, Noise())["loss/act"], loss.detach())


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 14])
def test_maps_of_any_size(side):
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * side * side, 10))
    batch = Batch(torch.randn(5, 1, side, side), torch.arange(5))
    assert bound(DGL(), net, batch).heads[0](net[0](batch.x)).shape == (5, 10)


def test_the_options_are_those_of_the_head():
    torch.manual_seed(0)
    net = NETS["mlp"]((1, 8, 8), 10, hidden=[300, 12])
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4))
    for options, shapes in (
        ({}, [(256, 300), (10, 256)]),
        ({"layers": 2, "width": 7}, [(7, 300), (7, 7), (10, 7)]),
    ):
        rule = bound(DGL(**options), net, batch)
        assert [tuple(m.weight.shape) for m in rule.heads[0] if isinstance(m, nn.Linear)] == shapes
    for wrong in ({"layers": 0}, {"width": -1}):
        with pytest.raises(UserError, match="allowed: a number above 0"):
            DGL(**wrong)


def test_tokens_and_pixels():
    torch.manual_seed(0)
    net = NETS["transformer"]((8,), 11, each_step=True, width=16, depth=3, heads=2)
    tokens = Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))
    rule = bound(DGL(), net, tokens, Language(11))
    assert rule.heads[0](torch.randn(4, 8, 16)).shape == (4, 8, 11)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    rule = bound(DGL(taps=["1"]), net, Batch(torch.randn(2, 1, 8, 8), torch.zeros(2, 8, 8).long()), Segment(3, (8, 8)))
    assert rule.heads[0](torch.randn(2, 4, 8, 8)).shape == (2, 3, 8, 8)
