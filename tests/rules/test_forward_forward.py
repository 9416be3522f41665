import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import ForwardForward
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, hidden=(12, 9)):
    torch.manual_seed(0)
    net = NETS["mlp"](IN_SHAPE, 10, hidden=hidden).double().to(batch.x.device)
    return net, bound(ForwardForward(), net, batch)


def inputs_of(net, call):
    """What the first layer saw."""
    seen = []
    handle = net.fc1.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    call()
    handle.remove()
    return seen


def test_the_equation(batch):
    """Gradients are those of the two losses, written out by hand on the samples that the net saw."""
    net, rule = net_and_rule(batch)
    (x,) = inputs_of(net, lambda: rule.gradients(net, TASK, batch, Noise(0, 0)))
    written = {name: p.grad for name, p in net.named_parameters()}
    h1 = net.fc1(x).relu()
    direction = h1.detach() / h1.detach().square().mean(1, keepdim=True).sqrt()
    h2 = net.fc2(direction).relu()
    n = len(batch.y)
    loss = sum(
        F.softplus(2 - g[:n]).mean() + F.softplus(g[n:] - 2).mean() for g in (h.square().mean(1) for h in (h1, h2))
    )
    hidden = [net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias]
    for p, expected in zip(hidden, torch.autograd.grad(loss, hidden), strict=True):
        name = next(k for k, q in net.named_parameters() if q is p)
        torch.testing.assert_close(written[name], expected)
    assert written["fc3.weight"] is None


def test_positive_samples_have_the_true_label_and_negative_ones_a_wrong_one(batch):
    net, rule = net_and_rule(batch)
    value = float(batch.x.max())
    wrong = []
    for step in range(20):
        (x,) = inputs_of(net, lambda step=step: rule.gradients(net, TASK, batch, Noise(0, step)))
        labels = (x[:, :10] / value).round(decimals=6)
        assert torch.equal(labels.sum(1), torch.ones(2 * len(batch.y), dtype=torch.float64))
        positive, negative = labels.argmax(1).chunk(2)
        assert torch.equal(positive, batch.y)
        assert not bool((negative == batch.y).any())
        assert torch.equal(x[:, 10:], batch.x.flatten(1)[:, 10:].repeat(2, 1))
        wrong.append((negative - batch.y) % 10)
    counts = torch.bincount(torch.cat(wrong), minlength=10)
    assert counts[0] == 0
    assert bool((counts[1:] > 40).all()), "wrong labels are drawn evenly"


def test_the_next_segment_does_not_see_how_good_a_sample_was(batch):
    """Scaling a layer changes its goodness and nothing behind it."""
    net, rule = net_and_rule(batch)
    second = []
    handle = net.fc2.register_forward_hook(lambda m, args, out: second.append(args[0].detach()))
    for _ in range(2):
        rule.gradients(net, TASK, batch, Noise(0, 0))
        with torch.no_grad():
            net.fc1.weight.mul_(3)
            net.fc1.bias.mul_(3)
    handle.remove()
    torch.testing.assert_close(second[0], second[1])
    torch.testing.assert_close(second[0].square().mean(1), torch.ones(2 * len(batch.y), dtype=torch.float64))


def test_a_prediction_scores_every_label_by_all_layers_but_the_first(batch):
    net, rule = net_and_rule(batch)
    net.eval()
    scores = rule.predict(net, batch.x)
    x = batch.x.flatten(1).clone()
    x[:, :10] = F.one_hot(torch.tensor(3), 10).to(x) * batch.x.max()
    h1 = net.fc1(x).relu()
    h2 = net.fc2(h1 / h1.square().mean(1, keepdim=True).sqrt()).relu()
    torch.testing.assert_close(scores[:, 3], h2.square().mean(1))
    jolt(net.fc3.parameters())
    assert torch.equal(scores, rule.predict(net, batch.x))
    single, rule = net_and_rule(batch, hidden=[12])
    torch.testing.assert_close(rule.predict(single, batch.x)[:, 3], single.fc1(x).relu().square().mean(1))


def test_segments_learn_apart(batch):
    net, rule = net_and_rule(batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    first = net.fc1.weight.grad.clone()
    jolt(net.fc2.parameters())
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert torch.equal(first, net.fc1.weight.grad)


def test_what_cannot_work_is_refused(batch):
    with pytest.raises(UserError, match="no hidden segment"):
        net_and_rule(batch, hidden=[])
    small = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 10)).double()
    with pytest.raises(
        UserError, match="samples have 4 values, but forward-forward writes the label over the first 10"
    ):
        bound(ForwardForward(), small, batch._replace(x=torch.zeros(32, 4, dtype=torch.float64)))
