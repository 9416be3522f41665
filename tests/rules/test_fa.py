import pytest
import torch
from torch import nn

from bpfree import Noise, UserError
from bpfree.local.feedback import FEEDBACKS
from bpfree.nets import NETS
from bpfree.rules import BRSF, FA, FRSF, USF, Backprop
from tests.helpers import IN_SHAPE, TASK, bound, gradients, same, zero_grad


class Residual(nn.Module):
    """Convolutions with stride, groups, dilation and 'same' padding, a skip, an in-place activation, three ranks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.down = nn.Conv2d(4, 6, 3, stride=2)
        self.line = nn.Conv1d(6, 5, 3, padding=1, bias=False)
        self.tokens = nn.Linear(5, 5)
        self.out = nn.Linear(45, 10)

    def forward(self, x):
        h = self.first(x).relu_()
        h = torch.relu_(self.down(h + self.block(h)))
        h = self.line(h.flatten(2)).transpose(1, 2)
        return self.out(self.tokens(h).tanh_().flatten(1))


def nets():
    torch.manual_seed(0)
    return {
        "mlp": NETS["mlp"](IN_SHAPE, 10, hidden=[20, 15, 12], batch_norm=True, dropout=0.2).double(),
        "conv": NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12, batch_norm=True).double(),
        "residual": Residual().double(),
    }


def compare(rule, net, batch):
    """Gradients of the rule and of backprop."""
    found = []
    for each in (rule, Backprop()):
        zero_grad(net)
        each.gradients(net, TASK, batch, Noise(0, 0))
        found.append(gradients(net))
    return found


def layers(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("make", [FA, FRSF, USF, BRSF])
def test_with_b_equal_w_it_is_backprop_and_otherwise_not(kind, make, batch):
    net = nets()[kind].to(batch.x.device)
    rule = bound(make(), net, batch)
    written, true = compare(rule, net, batch)
    last = {name for name in true if torch.equal(written[name], true[name])}
    assert 0 < len(last) < len(true), "the output layer has the true gradient, the hidden ones have not"
    rule.factors = lambda weight, drawn, noise: (weight, 1.0)
    written, true = compare(rule, net, batch)
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", nets())
def test_the_buffers_are_what_carries_the_error(kind, batch):
    net = nets()[kind].to(batch.x.device)
    rule = bound(FA(), net, batch)
    for index, layer in enumerate(layers(net)):
        rule.get_buffer(f"B{index}").copy_(layer.weight.detach())
    written, true = compare(rule, net, batch)
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("make", [FA, FRSF])
def test_aligned_begins_as_backprop_and_stays_behind(kind, make, batch):
    net = nets()[kind].to(batch.x.device)
    rule = bound(make(feedback="aligned"), net, batch)
    written, true = compare(rule, net, batch)
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-10)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    written, true = compare(rule, net, batch)
    assert not all(torch.allclose(written[name], true[name], rtol=0, atol=1e-10) for name in true)


@pytest.mark.parametrize("make", [FA, FRSF, BRSF])
@pytest.mark.parametrize("feedback", FEEDBACKS)
def test_every_initialisation(feedback, make, batch):
    net = nets()["conv"].to(batch.x.device)
    rule = bound(make(feedback=feedback), net, batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


def test_brsf_cannot_be_aligned():
    with pytest.raises(UserError, match="feedback: found 'aligned', allowed: uniform"):
        BRSF(feedback="aligned")


@pytest.mark.parametrize("make", [FA, USF, BRSF, FRSF])
def test_the_equation(make, batch):
    """d_l = (d_{l+1} B_{l+1}) * f', by hand on an MLP."""
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="tanh").double().to(batch.x.device)
    rule = bound(make(), net, batch)
    rule.gradients(net, TASK, batch, Noise(0, 3))
    b1, b2 = (b for _, b in rule.feedback_paths(net, Noise(0, 3)).values())
    with torch.no_grad():
        h0 = batch.x.flatten(1)
        h1 = net.fc1(h0).tanh()
        h2 = net.fc2(h1).tanh()
        e = (net.fc3(h2).softmax(1) - TASK.target(batch)) / len(batch.y)
        d2 = (e @ b2) * (1 - h2**2)
        d1 = (d2 @ b1) * (1 - h1**2)
    for layer, d, h in ((net.fc1, d1, h0), (net.fc2, d2, h1), (net.fc3, e, h2)):
        torch.testing.assert_close(layer.weight.grad, d.T @ h)
        torch.testing.assert_close(layer.bias.grad, d.sum(0))


@pytest.mark.parametrize("make", [USF, BRSF, FRSF])
def test_signs_follow_the_weights(make, batch):
    net = nets()["conv"].to(batch.x.device)
    rule = bound(make(), net, batch)
    weight = net.conv2.weight.detach()
    drawn = rule._buffers["B1"]
    for w in (weight, -weight):
        assert torch.equal(rule.matrix(w, drawn, Noise()).sign(), w.sign())


def test_magnitudes(batch):
    net = nets()["conv"].to(batch.x.device)
    weight = net.conv2.weight.detach()
    uniform = USF().matrix(weight, None, Noise())
    torch.testing.assert_close(uniform.abs(), torch.full_like(weight, (2 / (9 * (4 + 6))) ** 0.5))
    brsf = BRSF()
    a, b, c = (brsf.matrix(weight, None, Noise(0, step)) for step in (0, 1, 0))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    frsf = bound(FRSF(), net, batch)
    assert torch.equal(frsf.matrix(weight, frsf.B1, Noise(0, 0)), frsf.matrix(weight, frsf.B1, Noise(0, 1)))


def test_feedback_is_no_parameter_and_the_net_is_left_alone(batch):
    net = nets()["residual"].to(batch.x.device)
    rule = bound(FA(), net, batch)
    before = net(batch.x)
    assert list(rule.parameters()) == []
    assert [b.shape for b in rule.buffers()] == [layer.weight.shape for layer in layers(net)]
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(before, net(batch.x)) or net.training  # batch-norm statistics aside, the net computes the same


def test_the_same_gradients_under_memory_of_backprop(batch):
    """Feedback alignment saves no memory; it must not cost any either, beyond its matrices."""
    a, b = gradients_twice(batch), gradients_twice(batch)
    assert same(a, b)


def gradients_twice(batch):
    net = nets()["residual"].to(batch.x.device)
    rule = bound(FA(), net, batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise())
    return gradients(net)
