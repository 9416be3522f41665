import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import Pred, PredSim, Sim
from bpfree.rules.predsim import similarity, similarity_loss
from tests.helpers import IN_SHAPE, TASK, bound, gradients, zero_grad


def net(kind="mlp"):
    torch.manual_seed(0)
    if kind == "conv":
        return NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12, batch_norm=True).double()
    return NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="leaky_relu", batch_norm=True).double()


def test_similarity_is_the_cosine_of_centred_rows(batch):
    x = torch.randn(5, 7, dtype=torch.float64)
    found = similarity(x)
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(found[i, j], torch.corrcoef(x[[i, j]])[0, 1])
    maps = torch.randn(5, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(similarity(maps), similarity(maps.flatten(2).std(2)))


@pytest.mark.parametrize("shape", [(5, 1, 4, 4), (5, 3, 4, 4), (5, 7, 1, 6)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_maps_of_few_channels_or_one_row_are_compared_value_by_value(shape, order):
    """With one channel a standard deviation leaves a single feature, whose centred rows are all zero."""
    torch.manual_seed(0)
    maps = torch.randn(shape, dtype=torch.float64).to(memory_format=order)
    torch.testing.assert_close(similarity(maps), torch.corrcoef(maps.flatten(1)))


def test_sim_is_zero_for_a_perfect_representation(batch):
    """Features that are the label itself, seen through g = identity, leave nothing to learn."""
    labels = TASK.target(batch)
    rule = bound(Sim(), net().to(batch.x.device), batch)
    head = rule.heads[0]
    head.match = nn.Identity()
    assert float(rule.local_loss(0, labels, labels)) == pytest.approx(0, abs=1e-30)
    assert float(rule.local_loss(0, 5 * labels + 3, labels)) == pytest.approx(0, abs=1e-20)
    assert float(rule.local_loss(0, labels.roll(1, 0), labels)) > 0.01


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_predsim_is_its_two_parts(kind, batch):
    """Gradients of predsim = 0.01 of pred's and 0.99 of sim's, with the same heads."""
    model = net(kind).to(batch.x.device)
    both = bound(PredSim(), model, batch)
    parts = [bound(Pred(), model, batch), bound(Sim(), model, batch)]
    for head, pred, sim in zip(both.heads, parts[0].heads, parts[1].heads, strict=True):
        nn.init.normal_(head.decode.linear.weight)
        pred.decode.load_state_dict(head.decode.state_dict())
        sim.match.load_state_dict(head.match.state_dict())
    found = []
    for rule in (both, *parts):
        zero_grad(model)
        rule.gradients(model, TASK, batch, Noise())
        found.append(gradients(model))
    for name, whole in found[0].items():
        output = name.split(".")[1] == ("fc3" if kind == "mlp" else "fc2")
        sim = torch.zeros_like(whole) if output else 0.99 * found[2][name]
        torch.testing.assert_close(whole, 0.01 * found[1][name] + sim)


def test_heads_start_at_zero_and_pool_to_at_most_1024(batch):
    torch.manual_seed(0)
    model = NETS["conv"]((1, 8, 8), 10, channels=[64, 8], hidden=12).double().to(batch.x.device)
    rule = bound(PredSim(), model, batch)
    assert [head.decode.linear.in_features for head in rule.heads] == [64 * 4 * 4, 8 * 4 * 4, 12]
    assert all(bool((head.decode.linear.weight == 0).all()) for head in rule.heads)
    assert isinstance(rule.heads[0].match, nn.Conv2d)
    assert isinstance(rule.heads[2].match, nn.Linear)


def test_pooling_goes_as_far_as_asked_for(batch):
    model = NETS["conv"]((1, 8, 8), 10, channels=[64, 8], hidden=12).double().to(batch.x.device)
    for pooled, expected in ((4096, 64 * 8 * 8), (2048, 64 * 4 * 4), (64, 64)):
        assert bound(PredSim(pooled=pooled), model, batch).heads[0].decode.linear.in_features == expected
    with pytest.raises(UserError, match="pooled: found 0, allowed: a number above 0"):
        Pred(pooled=0)


def test_maps_of_one_pixel_have_no_spread_and_are_taken_as_they_are():
    x = torch.randn(5, 7, 1, 1, dtype=torch.float64)
    assert torch.equal(similarity(x), similarity(x.flatten(1)))


def test_pred_is_cross_entropy_of_its_decoder(batch):
    model = net().to(batch.x.device).eval()
    rule = bound(Pred(), model, batch)
    nn.init.normal_(rule.heads[0].decode.linear.weight)
    h = torch.randn(len(batch.y), 12, dtype=torch.float64, device=batch.x.device)
    expected = F.cross_entropy(rule.heads[0].decode(h), batch.y)
    torch.testing.assert_close(rule.local_loss(0, h, TASK.target(batch)), expected)


def test_beta_is_a_fraction():
    with pytest.raises(UserError, match="beta: found 1.2"):
        PredSim(beta=1.2)


def test_maps_of_one_pixel_have_no_spread_over_space(batch):
    maps = torch.randn(5, 7, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(similarity(maps), similarity(maps.flatten(1)))


@pytest.mark.parametrize("shape", [(6, 9), (6, 5, 3, 4), (6, 2, 3, 4), (6, 7, 1, 1)])
def test_the_derivative_written_out_is_autograds(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = similarity(F.one_hot(torch.tensor([0, 1, 2, 0, 1, 1]), 3).double())
    plain = F.mse_loss(similarity(x), target)
    fast = similarity_loss(x, target)
    torch.testing.assert_close(fast, plain)
    expected, found = (torch.autograd.grad(3 * loss, x)[0] for loss in (plain, fast))
    torch.testing.assert_close(found, expected)
    same = torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(similarity_loss(same, torch.eye(4).double()), same)[0].isfinite().all()
