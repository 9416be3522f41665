"""GrAPE: the estimates of forward mode, and the matrices that follow them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rule import Locality
from bpfree.rules import Backprop, GrAPE
from bpfree.tasks import Classify, Language, Sequence
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, gradients, same, zero_grad


def linear_net(device="cpu"):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 16), nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 10)]
    return nn.Sequential(nn.Flatten(), *layers).double().to(device)


def jacobians(net, features=False):
    """d(output)/d(h_l), or of the input of the read-out, for the taps 1, 2, 3 of `linear_net`."""
    behind = [net[3].weight @ net[2].weight, net[3].weight]
    return [j if features else net[4].weight @ j for j in behind] + ([] if features else [net[4].weight])


def directions(rule, batch):
    keys = [Noise(0, 0).fold("direction", index) for index in range(len(rule.taps))]
    return [key.randn(32, *s.shape, dtype=torch.float64) for key, s in zip(keys, rule.segments, strict=False)]


@pytest.mark.parametrize("error", ["output", "features"])
def test_an_estimate_is_the_mean_of_the_products_with_directions(error, batch):
    net = linear_net(batch.device)
    rule = bound(GrAPE(error=error), net, batch)
    with torch.no_grad():
        for index, true in enumerate(jacobians(net, error == "features")):
            (found,) = rule.estimates(net, batch, Noise(0, 0), [index]).values()
            p = directions(rule, batch)[index]
            torch.testing.assert_close(found, (p @ true.T).T @ p / 32)


def test_directions_together_add_up(batch):
    net = linear_net(batch.device)
    rule = bound(GrAPE(), net, batch)
    with torch.no_grad():
        p = directions(rule, batch)
        moved = sum(each @ true.T for each, true in zip(p, jacobians(net), strict=True))
        for index, found in rule.estimates(net, batch, Noise(0, 0), [0, 1, 2]).items():
            torch.testing.assert_close(found, moved.T @ p[index] / 32)


@pytest.mark.parametrize("connection", ["dense", "channel"])
def test_estimates_have_the_jacobian_as_their_mean(connection):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 4)).double()
    batch = Batch(torch.randn(500, 1, 6, 6, dtype=torch.float64), torch.arange(500) % 4)
    rule = bound(GrAPE(connection=connection), net, batch, Classify(4))
    last = net[3].weight.detach().view(4, 2, 2, 2)
    first = F.conv_transpose2d(last, net[1].weight.detach())
    found = [rule.estimates(net, batch, Noise(0, step), [0, 1]) for step in range(8)]
    for index, true in enumerate((first, last)):
        true = true.flatten(2).mean(2) if connection == "channel" else true.flatten(1)
        mean = torch.stack([each[index] for each in found]).mean(0)
        assert float(F.cosine_similarity(mean.flatten(), true.flatten(), dim=0)) > 0.95
        assert float(mean.norm() / true.norm()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("options", [{}, {"together": True}, {"error": "features"}])
def test_on_a_linear_net_the_matrices_turn_to_the_jacobian(options, batch):
    net = linear_net(batch.device)
    rule = bound(GrAPE(**options), net, batch)

    def cosines():
        true = [F.normalize(j.detach(), dim=1) for j in jacobians(net, "error" in options)]
        return [float(F.cosine_similarity(rule.matrix(i).flatten(), j.flatten(), dim=0)) for i, j in enumerate(true)]

    before, optimizer = cosines(), torch.optim.Adam(rule.parameters(), lr=0.02)
    for step in range(150):
        zero_grad(net, rule)
        rule.gradients(net, TASK, batch, Noise(0, step))
        optimizer.step()
    assert max(abs(c) for c in before) < 0.4
    assert min(cosines()) > 0.85


def test_a_matrix_learns_by_the_cosine_alone(batch):
    """Its gradient is that of 1 - cos(B, J'), and the lengths of its rows change nothing."""
    net = linear_net(batch.device)
    rule = bound(GrAPE(), net, batch)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    (estimate,) = rule.estimates(net, batch, Noise(0, 0), [0]).values()
    weight = rule.matrices[0].weight.detach().clone().requires_grad_()
    (1 - F.cosine_similarity(F.normalize(weight, dim=1).flatten(), estimate.flatten(), dim=0)).backward()
    torch.testing.assert_close(rule.matrices[0].weight.grad, weight.grad)
    torch.testing.assert_close((weight * weight.grad).sum(1), torch.zeros(10).to(weight), rtol=0, atol=1e-12)
    torch.testing.assert_close(rule.matrix(0).norm(dim=1), torch.ones(10).to(weight))
    before = gradients(net)
    with torch.no_grad():
        rule.matrices[0].weight.mul_(torch.rand(10, 1).to(weight) + 0.5)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-10, atol=1e-15)


def test_passes_in_forward_mode_leave_no_trace_and_see_the_same_dropout(batch):
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="tanh", batch_norm=True, dropout=0.5).to(batch.x)
    masks = []
    net.drop1.register_forward_hook(lambda module, args, out: masks.append(out.detach() == 0))
    bound(GrAPE(), net, batch).gradients(net, TASK, batch, Noise(0, 0))
    assert [int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm1d)] == [1, 1]
    runs = masks[-3:]  # two passes in forward mode, and that of the step
    assert all(torch.equal(mask, runs[0]) for mask in runs)


def test_every_so_many_steps_it_is_backprop(batch):
    net = linear_net(batch.device)
    rule = bound(GrAPE(backprop_every=3), net, batch)
    for step in range(6):
        found = []
        for each in (rule, Backprop()):
            zero_grad(net, rule)
            each.gradients(net, TASK, batch, Noise(0, step))
            found.append(gradients(net))
        assert same(*found) == (step in (2, 5))
    assert rule.locality() == Locality()
    assert GrAPE().locality() != Locality()


def test_a_step_of_backprop_with_updates_on_the_way(batch):
    states = []
    for update in ("together", "fused"):
        rule = GrAPE(backprop_every=2, memory="flat")
        trainer = Trainer(linear_net(batch.device), rule, TASK, "sgd", seed=0, compute={"update": update})
        for _ in range(3):
            trainer.step(batch)
        states.append({**trainer.net.state_dict(), **rule.state_dict()})
    assert same(*states)


def test_language_on_a_transformer():
    torch.manual_seed(1)
    batch = Batch(torch.randint(11, (4, 6)), torch.randint(11, (4, 6)))
    torch.manual_seed(0)
    net = NETS["transformer"]((6,), 11, each_step=True, width=16, depth=3, heads=2)
    rule = bound(GrAPE(error="features", together=True), net, batch, Language(11))
    assert [tuple(p.shape) for p in rule.parameters()] == [(16, 16)] * 2
    scalars = rule.gradients(net, Language(11), batch, Noise(0, 0))
    assert bool(scalars["loss"].isfinite())
    assert all(bool(p.grad.abs().sum() > 0) for p in (*net.parameters(), *rule.parameters()))
    assert rule.forward_passes(net, Language(11)) == 2
    assert GrAPE().forward_passes(net, Language(11)) == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="backprop_every: found -1, allowed: a number of steps, or 0"):
        GrAPE(backprop_every=-1)
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 5, 3), torch.randn(4, 5, 2))
    net = NETS["lstm"]((5, 3), 2, hidden=[4, 4], each_step=True)
    rule = bound(GrAPE(), net, batch, Sequence(2))
    with pytest.raises(UserError, match="no forward-mode derivative of one of its operations"):
        rule.gradients(net, Sequence(2), batch, Noise(0, 0))
