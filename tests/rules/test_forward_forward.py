import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.noise import counting_everywhere
from bpfree.rules import ForwardForward
from bpfree.rules.forward_forward import drawn_by_softmax
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, hidden=(12, 9), **options):
    torch.manual_seed(0)
    net = NETS["mlp"](IN_SHAPE, 10, hidden=hidden).double().to(batch.x.device)
    return net, bound(ForwardForward(**options), net, batch)


def inputs_of(net, call):
    """What the first layer saw in each pass."""
    seen = []
    handle = net.fc1.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    call()
    handle.remove()
    return seen


def by_hand(net, x):
    """Both hidden layers, the first detached from the second."""
    h1 = net.fc1(x).relu()
    direction = h1.detach() / h1.detach().square().mean(1, keepdim=True).sqrt()
    return h1, net.fc2(direction).relu()


@pytest.mark.parametrize("negatives", ["hard", "even"])
def test_the_equation(negatives, batch):
    """Gradients are those of the losses, written out by hand on the samples that the net saw."""
    net, rule = net_and_rule(batch, theta=0.5, steepness=3.0, negatives=negatives)
    *neutral, x = inputs_of(net, lambda: rule.gradients(net, TASK, batch, Noise(0, 0)))
    written = {name: p.grad for name, p in net.named_parameters()}
    n = len(batch.y)
    goods = [h.square().mean(1) for h in by_hand(net, x)]
    loss = sum(F.softplus(3 * (0.5 - g[:n])).mean() + F.softplus(3 * (g[n:] - 0.5)).mean() for g in goods)
    if negatives == "hard":  # the output layer learns from what the neutral label gives
        _, h2 = by_hand(net, neutral[0])
        loss = loss + F.cross_entropy(net.fc3(h2.detach() / h2.detach().square().mean(1, keepdim=True).sqrt()), batch.y)
    expected = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    for (name, found), wanted in zip(written.items(), expected, strict=True):
        assert (found is None) == (wanted is None) == (negatives == "even" and "fc3" in name)
        if wanted is not None:
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("negatives", ["hard", "even"])
def test_positive_samples_have_the_true_label_and_negative_ones_a_wrong_one(negatives, batch):
    net, rule = net_and_rule(batch, negatives=negatives)
    value = float(batch.x.max())
    for step in range(20):
        *neutral, x = inputs_of(net, lambda step=step: rule.gradients(net, TASK, batch, Noise(0, step)))
        labels = (x[:, :10] / value).round(decimals=6)
        assert torch.equal(labels.sum(1), batch.x.new_ones(2 * len(batch.y)))
        positive, negative = labels.argmax(1).chunk(2)
        assert torch.equal(positive, batch.y)
        assert not bool((negative == batch.y).any())
        assert torch.equal(x[:, 10:], batch.x.flatten(1)[:, 10:].repeat(2, 1))
    for x in neutral:
        torch.testing.assert_close(x[:, :10], torch.full_like(x[:, :10], value / 10))
        assert torch.equal(x[:, 10:], batch.x.flatten(1)[:, 10:])


@pytest.mark.parametrize("negatives", ["hard", "even"])
def test_wrong_labels_are_as_likely_as_they_should_be(negatives, batch):
    """Even ones all the same, hard ones by the output layer's softmax without the true label."""
    net, rule = net_and_rule(batch, negatives=negatives)
    odds = torch.arange(1.0, 11.0, dtype=torch.float64).to(batch.x) if negatives == "hard" else batch.x.new_ones(10)
    with torch.no_grad():
        net.fc3.weight.zero_()
        net.fc3.bias.copy_(odds.log())
    wrong = []
    for step in range(200):
        *_, x = inputs_of(net, lambda step=step: rule.gradients(net, TASK, batch, Noise(0, step)))
        wrong.append(F.one_hot(x[len(batch.y) :, :10].argmax(1), 10).double())
    true = F.one_hot(batch.y, 10).double()
    expected = odds * (1 - true)
    expected = (expected / expected.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(torch.stack(wrong).mean((0, 1)), expected, rtol=0, atol=0.015)


def test_the_next_segment_does_not_see_how_good_a_sample_was(batch):
    """Scaling a layer changes its goodness and nothing behind it."""
    net, rule = net_and_rule(batch, negatives="even")
    second = []
    handle = net.fc2.register_forward_hook(lambda m, args, out: second.append(args[0].detach()))
    for _ in range(2):
        rule.gradients(net, TASK, batch, Noise(0, 0))
        with torch.no_grad():
            net.fc1.weight.mul_(3)
            net.fc1.bias.mul_(3)
    handle.remove()
    torch.testing.assert_close(second[0], second[1])
    torch.testing.assert_close(second[0].square().mean(1), batch.x.new_ones(2 * len(batch.y)))


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
    net, rule = net_and_rule(batch, negatives="even")  # hard ones are found by the layers behind
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    first = net.fc1.weight.grad.clone()
    jolt(net.fc2.parameters())
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert torch.equal(first, net.fc1.weight.grad)


def test_an_output_that_is_no_number_leaves_it_to_the_trainer(batch):
    net, rule = net_and_rule(batch)
    with torch.no_grad():
        net.fc3.bias.fill_(torch.nan)
    assert bool(rule.gradients(net, TASK, batch, Noise(0, 0))["loss/output"].isnan())


def test_what_cannot_work_is_refused(batch):
    with pytest.raises(UserError, match="negatives: found 'wrong', allowed: hard or even"):
        ForwardForward(negatives="wrong")
    with pytest.raises(UserError, match="no hidden segment"):
        net_and_rule(batch, hidden=[])
    small = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 10)).double()
    with pytest.raises(
        UserError, match="samples have 4 values, but forward-forward writes the label over the first 10"
    ):
        bound(ForwardForward(), small, batch._replace(x=torch.zeros(32, 4, dtype=torch.float64)))


def test_wrong_labels_on_a_device_are_drawn_by_the_softmax():
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    with counting_everywhere():
        drawn = drawn_by_softmax(scores.expand(20_000, 4), Noise(0, 0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, scores.softmax(0), rtol=0, atol=0.015)
    assert shares[2] == 0
