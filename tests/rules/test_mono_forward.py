import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import MonoForward
from tests.helpers import IN_SHAPE, TASK, bound


def net_and_rule(batch, **options):
    torch.manual_seed(0)
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9]).double().to(batch.x.device)
    return net, bound(MonoForward(**options), net, batch)


def test_the_equation(batch):
    """Each layer and its M_l minimise CE(h_l M_l^T, y), written out by hand."""
    net, rule = net_and_rule(batch)
    rule.gradients(net, TASK, batch, Noise())
    h0 = batch.x.flatten(1)
    h1 = net.fc1(h0).relu()
    h2 = net.fc2(h1.detach()).relu()
    losses = [F.cross_entropy(h @ head.weight.T, batch.y) for h, head in zip((h1, h2), rule.heads, strict=True)]
    losses.append(F.cross_entropy(net.fc3(h2.detach()), batch.y))
    parameters = [*net.parameters(), *rule.parameters()]
    expected = torch.autograd.grad(sum(losses), parameters)
    for p, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_heads_have_no_bias_and_train_with_their_segment(batch):
    net, rule = net_and_rule(batch)
    assert [tuple(head.weight.shape) for head in rule.heads] == [(10, 12), (10, 9)]
    assert all(head.bias is None for head in rule.heads)
    assert rule.units(net)[1] == [net.fc2.weight, net.fc2.bias, rule.heads[1].weight]


def test_the_three_ways_to_read_a_prediction(batch):
    net, rule = net_and_rule(batch)
    h1 = net.fc1(batch.x.flatten(1)).relu()
    h2 = net.fc2(h1).relu()
    goodness = [rule.heads[0](h1), rule.heads[1](h2)]
    expected = {"net": net(batch.x), "last": goodness[1], "sum": goodness[0] + goodness[1] + net(batch.x)}
    for read, scores in expected.items():
        rule.read = read
        torch.testing.assert_close(rule.predict(net, batch.x), scores)


def test_last_needs_a_hidden_segment(batch):
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[]).double().to(batch.x.device)
    with pytest.raises(UserError, match="no hidden segment"):
        MonoForward(read="last").bind(net, TASK, batch)
