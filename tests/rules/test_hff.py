import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import HFF
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, **options):
    torch.manual_seed(0)
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9]).double().to(batch.x.device)
    return net, bound(HFF(**options), net, batch)


def test_the_equation(batch):
    """Cosines to unit prototypes, their soft maximum for each class, and a margin for the right one, by loops."""
    net, rule = net_and_rule(batch, prototypes=3, scale=7.0, margin=0.2)
    rule.gradients(net, TASK, batch, Noise())
    h1 = net.fc1(batch.x.flatten(1)).relu()
    h2 = net.fc2(h1.detach()).relu()
    losses = []
    for h, head in zip((h1, h2), rule.heads, strict=True):
        p = head.directions.view(10, 3, -1)
        z = torch.zeros(len(h), 10, dtype=h.dtype)
        for b in range(len(h)):
            for c in range(10):
                cosines = torch.stack([F.cosine_similarity(h[b], p[c, m], dim=0) for m in range(3)])
                z[b, c] = (7.0 * cosines).exp().sum().log() - 7.0 * 0.2 * (batch.y[b] == c)
        losses.append(F.cross_entropy(z, batch.y))
    losses.append(F.cross_entropy(net.fc3(h2.detach()), batch.y))
    parameters = [*net.parameters(), *rule.parameters()]
    for p, g in zip(parameters, torch.autograd.grad(sum(losses), parameters), strict=True):
        torch.testing.assert_close(p.grad, g)


def test_one_prototype_without_a_margin_is_a_scaled_cosine(batch):
    net, rule = net_and_rule(batch, prototypes=1, scale=5.0, margin=0.0)
    h = net.fc1(batch.x.flatten(1)).relu()
    expected = 5 * F.normalize(h, dim=1) @ F.normalize(rule.heads[0].directions, dim=1).T
    torch.testing.assert_close(rule.scores(0, h), expected)


def test_lengths_do_not_matter(batch):
    net, rule = net_and_rule(batch)
    h = net.fc1(batch.x.flatten(1)).relu()
    before = rule.scores(0, h)
    torch.testing.assert_close(rule.scores(0, 3 * h), before)
    with torch.no_grad():
        rule.heads[0].directions.mul_(torch.rand(40, 1) + 0.5)
    torch.testing.assert_close(rule.scores(0, h), before)


def test_features_without_a_direction_have_equal_scores_and_send_no_error(batch):
    _, rule = net_and_rule(batch)
    h = torch.zeros(2, 12, dtype=torch.float64, requires_grad=True)
    z = rule.scores(0, h)
    assert bool((z == z[0, 0]).all())
    z.sum().backward()
    assert bool((h.grad == 0).all())


def test_a_margin_of_a_soft_target_and_of_an_index(batch):
    _, rule = net_and_rule(batch, scale=10.0, margin=0.3)
    z = torch.randn(3, 10, dtype=torch.float64)
    y = torch.tensor([4, 0, 9])
    torch.testing.assert_close(rule.with_margin(z, F.one_hot(y, 10).double()), rule.with_margin(z, y))
    torch.testing.assert_close(z - rule.with_margin(z, torch.full((3, 10), 0.1).double()), torch.full_like(z, 0.3))


def test_segments_learn_apart(batch):
    net, rule = net_and_rule(batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    first = net.fc1.weight.grad.clone()
    jolt([*net.fc2.parameters(), *net.fc3.parameters(), *rule.heads[1].parameters()])
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    assert torch.equal(first, net.fc1.weight.grad)


def test_without_taps_it_is_backprop_to_the_bit(batch):
    grads = []
    for rule in ({"name": "hff", "taps": 0}, "backprop"):
        torch.manual_seed(0)
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9]).double().to(batch.x.device)
        trainer = Trainer(net, rule, Classify(10), {"name": "sgd", "lr": 0.1})
        trainer.step(batch)
        grads.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *grads))


def test_maps_are_averaged_to_few_features(batch):
    torch.manual_seed(0)
    net = NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=None).double().to(batch.x.device)
    rule = bound(HFF(prototypes=2, pooled=64), net, batch)
    assert [tuple(head.directions.shape) for head in rule.heads] == [(20, 64), (20, 24)]
    h = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    pooled = F.normalize(F.avg_pool2d(h, 2).flatten(1), dim=1)
    cosines = (pooled @ F.normalize(rule.heads[0].directions, dim=1).T).view(2, 10, 2)
    torch.testing.assert_close(rule.scores(0, h), (rule.scale * cosines).logsumexp(2))
    last = h.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(rule.scores(0, last), rule.scores(0, h))


def test_where_predictions_are_read(batch):
    net, rule = net_and_rule(batch)
    h1 = net.fc1(batch.x.flatten(1)).relu()
    h2 = net.fc2(h1).relu()
    z = [rule.scores(0, h1), rule.scores(1, h2)]
    for read, scores in {"net": net(batch.x), "last": z[1], "sum": z[0] + z[1] + net(batch.x)}.items():
        rule.read = read
        torch.testing.assert_close(rule.predict(net, batch.x), scores)


def test_it_learns_the_next_token():
    """Labels that do not count are indices outside the vocabulary; the margin leaves them alone."""
    torch.manual_seed(0)
    net = NETS["transformer"]((8,), 11, width=16, depth=2, heads=2, each_step=True)
    x = torch.randint(11, (16, 8))
    y = x.clone()
    y[:, -1] = -100
    trainer = Trainer(net, "hff", Language(11), {"name": "adam", "lr": 0.01})
    losses = [float(trainer.step(Batch(x, y))["loss"]) for _ in range(40)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 2.0}, "margin: found 2.0, allowed: a number from 0 to below 2"),
        ({"margin": -0.1}, "margin: found -0.1"),
        ({"prototypes": 0}, "prototypes: found 0"),
        ({"scale": 0.0}, "scale: found 0.0"),
        ({"read": "all"}, "read: found 'all', allowed: net or last or sum"),
    ],
)
def test_what_is_not_allowed(options, message):
    with pytest.raises(UserError, match=message):
        HFF(**options)
