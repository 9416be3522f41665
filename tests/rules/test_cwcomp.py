import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import CwComp
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, read="net"):
    torch.manual_seed(0)
    net = NETS["conv"](IN_SHAPE, 10, channels=[20, 30], hidden=24, batch_norm=True).double().to(batch.x.device)
    return net, bound(CwComp(read=read), net, batch)


def test_goodness_is_the_mean_square_of_a_classes_channels(batch):
    _, rule = net_and_rule(batch)
    h = torch.randn(3, 20, 5, 4, dtype=torch.float64)
    for c in range(10):
        expected = h[:, 2 * c : 2 * c + 2].square().mean((1, 2, 3))
        torch.testing.assert_close(rule.goodness(0, h)[:, c], expected)
        flat = h[:, :, 0, 0]
        torch.testing.assert_close(rule.goodness(2, flat)[:, c], flat[:, 2 * c : 2 * c + 2].square().mean(1))
        rule.axes[1] = -1
        torch.testing.assert_close(rule.goodness(1, h.flatten(2).mT)[:, c], expected)


@pytest.mark.parametrize("channels", [10, 11, 24, 29, 30])
def test_groups_are_as_even_as_can_be_and_every_channel_is_in_one(channels, batch):
    _, rule = net_and_rule(batch)
    of = torch.stack(
        [rule.goodness(2, row[None])[0] for row in torch.eye(channels, dtype=torch.float64)]
    )  # [channels, C]
    assert bool(((of > 0).sum(1) == 1).all())
    sizes = (of > 0).sum(0)
    assert int(sizes.max() - sizes.min()) <= 1
    torch.testing.assert_close(of.sum(0), torch.ones(10, dtype=torch.float64))
    assert bool((of.argmax(1).diff() >= 0).all())


def test_the_equation(batch):
    """Each segment minimises the cross-entropy of its goodness on the samples as they are, the output the task's."""
    net, rule = net_and_rule(batch)
    rule.gradients(net, TASK, batch, Noise())
    losses, h = [], batch.x
    for name, layer in net.named_children():
        h = layer(h)
        if name.startswith("act"):
            losses.append(F.cross_entropy(rule.goodness(len(losses), h), batch.y))
            h = h.detach()
    losses.append(TASK.loss(h, batch))
    parameters = list(net.parameters())
    for p, expected in zip(parameters, torch.autograd.grad(sum(losses), parameters), strict=True):
        torch.testing.assert_close(p.grad, expected)


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
    scores = {}
    for read in ("net", "last", "sum"):
        net, rule = net_and_rule(batch, read)
        net.eval()
        with torch.no_grad():
            scores[read] = rule.predict(net, batch.x)
            h1 = net[:3](batch.x)
            h2 = net[3:7](h1)
            h3 = net[7:11](h2)
            goods = [rule.goodness(i, h) for i, h in enumerate((h1, h2, h3))]
            torch.testing.assert_close(
                scores[read], {"net": net(batch.x), "last": goods[-1], "sum": sum(goods)}[read], check_stride=False
            )
    assert not any(m._forward_hooks for m in net.modules())


def test_what_cannot_work_is_refused(batch):
    narrow = NETS["conv"](IN_SHAPE, 10, channels=[8, 16]).double().to(batch.x.device)
    with pytest.raises(UserError, match="net: 'act1' has 8 channels, allowed: at least one for each of the 10 classes"):
        bound(CwComp(), narrow, batch)
    single = NETS["mlp"](IN_SHAPE, 10, hidden=[]).double().to(batch.x.device)
    with pytest.raises(UserError, match="read: found 'last', but the net has no hidden segment"):
        bound(CwComp(read="last"), single, batch)
    with pytest.raises(UserError, match="read: found 'all', allowed: net or last or sum"):
        CwComp(read="all")
