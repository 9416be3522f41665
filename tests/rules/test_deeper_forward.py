import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import CwComp, DeeperForward
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, **options):
    torch.manual_seed(0)
    net = NETS["conv"](IN_SHAPE, 10, channels=[20, 30], hidden=40).double().to(batch.x.device)
    return net, bound(DeeperForward(**options), net, batch)


def test_goodness_is_the_mean_of_a_classes_channels(batch):
    _, rule = net_and_rule(batch)
    h = torch.randn(3, 20, 5, 4, dtype=torch.float64)
    for c in range(10):
        expected = h[:, 2 * c : 2 * c + 2].mean((1, 2, 3))
        torch.testing.assert_close(rule.goodness(0, h)[:, c], expected)
        flat = h[:, :, 0, 0]
        torch.testing.assert_close(rule.goodness(2, flat)[:, c], flat[:, 2 * c : 2 * c + 2].mean(1))
        rule.axes[1] = -1
        torch.testing.assert_close(rule.goodness(1, h.flatten(2).mT)[:, c], expected)


@pytest.mark.parametrize("channels", [20, 23, 30])
@pytest.mark.parametrize("form", ["map", "channels last", "tokens", "flat"])
def test_what_passes_on_has_no_goodness_left(channels, form, batch):
    """The mean of each group is 0 and its variance 1, whatever the size of the group and the order in memory."""
    _, rule = net_and_rule(batch)
    h = torch.rand(3, channels, 4, 4, dtype=torch.float64) * 500
    if form == "channels last":
        h = h.contiguous(memory_format=torch.channels_last)
    elif form == "tokens":
        h, rule.axes[0] = h.flatten(2).mT, -1
    elif form == "flat":
        h = h[:, :, 0, 0]
    z = rule.pass_on(0, h)
    assert z.shape == h.shape
    torch.testing.assert_close(rule.goodness(0, z), torch.zeros(3, 10, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(CwComp.goodness(rule, 0, z), torch.ones(3, 10, dtype=torch.float64), atol=1e-2, rtol=0)


def test_a_sample_is_normalised_as_a_whole_where_a_class_has_one_value(batch):
    _, rule = net_and_rule(batch)
    h = torch.rand(3, 16, dtype=torch.float64)
    torch.testing.assert_close(rule.pass_on(0, h), F.layer_norm(h, (16,)))


def test_the_equation(batch):
    """Each segment minimises the cross-entropy of its goodness; the next one sees GroupNorm of its output, detached."""
    net, rule = net_and_rule(batch)
    rule.gradients(net, TASK, batch, Noise())
    losses, h = [], batch.x
    for name, layer in net.named_children():
        h = layer(h)
        if name.startswith("act"):
            size = h.shape[1] // 10
            losses.append(F.cross_entropy(h.unflatten(1, (10, size)).flatten(2).mean(2), batch.y))
            h = h.detach() if name == "act" else F.group_norm(h.detach(), 10)  # the output sees h itself
    losses.append(TASK.loss(h, batch))
    parameters = list(net.parameters())
    for p, expected in zip(parameters, torch.autograd.grad(sum(losses), parameters), strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_units_that_are_off_in_all_samples_send_an_error(batch):
    """The error of the mean is the same for all units, and that of the square is 0 where they are off."""
    _, rule = net_and_rule(batch)
    for kind, works in ((DeeperForward, True), (CwComp, False)):
        h = torch.zeros(4, 20, dtype=torch.float64, requires_grad=True)
        F.cross_entropy(kind.goodness(rule, 2, h), torch.arange(4)).backward()
        assert bool((h.grad != 0).all()) == works


def test_segments_learn_apart(batch):
    net, rule = net_and_rule(batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    first = net.conv1.weight.grad.clone()
    jolt([*net.conv2.parameters(), *net.fc1.parameters(), *net.fc2.parameters()])
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    assert torch.equal(first, net.conv1.weight.grad)


def test_where_predictions_are_read(batch):
    net, rule = net_and_rule(batch)
    assert not rule.predicts_with_net
    net.eval()
    goods, h = [], batch.x
    for name, layer in net.named_children():
        h = layer(h)
        if name.startswith("act"):
            goods.append(rule.goodness(len(goods), h))
            h = rule.pass_on(len(goods) - 1, h)
    with torch.no_grad():
        for read, scores in {"net": h, "last": goods[-1], "sum": sum(goods)}.items():
            rule.read = read
            torch.testing.assert_close(rule.predict(net, batch.x), scores)
    assert not any(m._forward_hooks for m in net.modules())


def test_what_cannot_work_is_refused(batch):
    narrow = NETS["conv"](IN_SHAPE, 10, channels=[8, 16]).double().to(batch.x.device)
    with pytest.raises(UserError, match="net: 'act1' has 8 channels, allowed: at least one for each of the 10 classes"):
        bound(DeeperForward(), narrow, batch)
    single = NETS["mlp"](IN_SHAPE, 10, hidden=[]).double().to(batch.x.device)
    with pytest.raises(UserError, match="read: found 'last', but the net has no hidden segment"):
        bound(DeeperForward(read="last"), single, batch)
    torch.testing.assert_close(bound(DeeperForward(), single, batch).predict(single, batch.x), single(batch.x))
