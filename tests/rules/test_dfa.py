import pytest
import torch
from torch import nn

from bpfree import Noise, UserError
from bpfree.local.feedback import FEEDBACKS, random_like
from bpfree.nets import NETS
from bpfree.rules import DFA, DRTP, Backprop
from tests.helpers import IN_SHAPE, TASK, bound, gradients, zero_grad


def linear_net(device):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 20), nn.Linear(20, 15), nn.Linear(15, 12), nn.Linear(12, 10)]
    return nn.Sequential(nn.Flatten(), *layers).double().to(device)


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_with_the_true_downstream_product_on_a_linear_net_it_is_backprop(memory, batch):
    net = linear_net(batch.x.device)
    rule = bound(DFA(memory=memory), net, batch)
    downstream = net[4].weight.detach()  # [C, H_3]
    for index in (2, 1, 0):
        rule.get_buffer(f"B{index}").copy_(downstream)
        downstream = downstream @ net[index + 1].weight.detach()
    written = []
    for each in (rule, Backprop()):
        zero_grad(net)
        each.gradients(net, TASK, batch, Noise())
        written.append(gradients(net))
    for name, expected in written[1].items():
        torch.testing.assert_close(written[0][name], expected, rtol=0, atol=1e-10)


def test_it_is_not_backprop_otherwise(batch):
    net = linear_net(batch.x.device)
    rule = bound(DFA(), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    hidden = net[1].weight.grad.clone()
    zero_grad(net)
    Backprop().gradients(net, TASK, batch, Noise())
    cosine = torch.cosine_similarity(hidden.flatten(), net[1].weight.grad.flatten(), dim=0)
    assert abs(float(cosine)) < 0.5


def test_the_equation(batch):
    """d_l = (e B_l) * f'(a_l); dW_l = d_l^T h_{l-1}; the output layer learns from e, written out by hand."""
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="tanh").double().to(batch.x.device)
    rule = bound(DFA(signal_scale=3.0), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    with torch.no_grad():
        h0 = batch.x.flatten(1)
        h1 = net.fc1(h0).tanh()
        h2 = net.fc2(h1).tanh()
        e = (net.fc3(h2).softmax(1) - TASK.target(batch)) / len(batch.y)
        d1 = 3.0 * (e @ rule.B0) * (1 - h1**2)
        d2 = 3.0 * (e @ rule.B1) * (1 - h2**2)
    for layer, d, h in ((net.fc1, d1, h0), (net.fc2, d2, h1), (net.fc3, e, h2)):
        torch.testing.assert_close(layer.weight.grad, d.T @ h)
        torch.testing.assert_close(layer.bias.grad, d.sum(0))


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_a_dropped_unit_gets_no_signal(memory, batch):
    """The signal enters behind the dropout: d_l = (e B_l) * m_l * f'(a_l), with the mask m_l of the forward pass."""
    torch.manual_seed(0)
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="tanh", dropout=0.5).double().to(batch.x.device)
    masks = {}
    for drop in (net.drop1, net.drop2):
        drop.register_forward_hook(lambda module, args, out: masks.update({module: (out / args[0]).detach()}))
    rule = bound(DFA(memory=memory), net, batch)
    assert rule.taps == ("drop1", "drop2")
    rule.gradients(net, TASK, batch, Noise(0, 0))
    m1, m2 = masks.values()
    assert 0.3 < float((m1 == 0).double().mean()) < 0.7
    with torch.no_grad():
        h0 = batch.x.flatten(1)
        f1 = net.fc1(h0).tanh()
        f2 = net.fc2(m1 * f1).tanh()
        e = (net.fc3(m2 * f2).softmax(1) - TASK.target(batch)) / len(batch.y)
        d1 = (e @ rule.B0) * m1 * (1 - f1**2)
        d2 = (e @ rule.B1) * m2 * (1 - f2**2)
    for layer, d, h in ((net.fc1, d1, h0), (net.fc2, d2, m1 * f1), (net.fc3, e, m2 * f2)):
        torch.testing.assert_close(layer.weight.grad, d.T @ h)
        torch.testing.assert_close(layer.bias.grad, d.sum(0))


class Wrapped(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


def test_only_a_dropout_right_behind_a_tap_moves_it(batch):
    nested = nn.Sequential(nn.Linear(64, 9), nn.Tanh(), nn.Dropout(0.1), nn.Dropout(0.2))
    net = nn.Sequential(nn.Flatten(), nested, nn.Linear(9, 8), nn.Tanh(), nn.Identity(), nn.Linear(8, 10)).to(batch.x)
    assert bound(DFA(), net, batch).taps == ("1", "4")
    flat = nn.Sequential(nn.Flatten(), *nested, nn.Linear(9, 10)).to(batch.x)
    assert bound(DFA(), flat, batch).taps == ("4",)
    assert bound(DFA(taps=["2"]), flat, batch).taps == ("2",)
    assert bound(DRTP(), flat, batch).taps == ("2",)
    wrapped = Wrapped(nn.Sequential(nn.Flatten(), *nested, nn.Linear(9, 10))).to(batch.x)
    assert bound(DFA(), wrapped, batch).taps == ("body.4",)
    conv = NETS["conv"](IN_SHAPE, 10, channels=[4], hidden=12, dropout=0.3).double().to(batch.x.device)
    assert bound(DFA(), conv, batch).taps == ("act1", "drop2")  # before pooling, and so before drop1


def test_feedback_is_fixed_and_no_parameter(batch):
    net = linear_net(batch.x.device)
    rule = bound(DFA(), net, batch)
    before = rule.B1.clone()
    optimizer = torch.optim.SGD([*net.parameters(), *rule.parameters()], lr=0.1)
    rule.gradients(net, TASK, batch, Noise())
    optimizer.step()
    assert list(rule.parameters()) == []
    assert sorted(rule.state_dict()) == ["B0", "B1", "B2"]
    assert torch.equal(before, rule.B1)


@pytest.mark.parametrize("name", FEEDBACKS)
def test_initialisations_have_their_spread(name):
    torch.manual_seed(0)
    rows, columns = 10, 4000
    matrix = random_like(name, torch.zeros(rows, columns, dtype=torch.float64))
    variance = {
        "uniform": 1 / (3 * columns),
        "kaiming": 2 / columns,
        "xavier": 2 / (rows + columns),
        "lecun": 1 / columns,
        "orthogonal": 1 / columns,
    }[name]
    assert matrix.dtype == torch.float64
    assert float(matrix.var()) == pytest.approx(variance, rel=0.05)
    if name == "orthogonal":
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(rows, dtype=torch.float64), atol=1e-5, rtol=0)


def conv_net(device, batch_norm=False):
    torch.manual_seed(0)
    return NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12, batch_norm=batch_norm).double().to(device)


@pytest.mark.parametrize("make", [DFA, DRTP])
@pytest.mark.filterwarnings("ignore:drtp")
def test_channel_is_dense_with_a_matrix_that_is_constant_over_space(make, batch):
    net = conv_net(batch.x.device, batch_norm=True)
    channel, dense = bound(make(connection="channel"), net, batch), bound(make(), net, batch)
    assert [tuple(b.shape) for b in channel.buffers()] == [(10, 4), (10, 6), (10, 12)]
    for index, space in enumerate((64, 16, 1)):
        dense.get_buffer(f"B{index}").copy_(channel.get_buffer(f"B{index}").repeat_interleave(space, dim=1))
    written = []
    for each in (channel, dense):
        zero_grad(net)
        each.gradients(net, TASK, batch, Noise())
        written.append(gradients(net))
    for name, expected in written[1].items():
        torch.testing.assert_close(written[0][name], expected, rtol=0, atol=1e-12)


def test_a_channel_of_tokens_is_their_last_dimension(batch):
    torch.manual_seed(0)
    layers = [nn.Flatten(1, 2), nn.Linear(8, 12), nn.Tanh(), nn.Flatten(), nn.Linear(96, 10)]
    net = nn.Sequential(*layers).to(batch.x)
    for feedback in ("uniform", "aligned"):
        channel = bound(DFA(connection="channel", feedback=feedback), net, batch)
        dense = bound(DFA(feedback=feedback), net, batch)
        if feedback == "aligned":
            torch.testing.assert_close(channel.B0, dense.B0.view(10, 8, 12).mean(1))
        dense.B0.copy_(channel.B0.repeat(1, 8))
        written = []
        for each in (channel, dense):
            zero_grad(net)
            each.gradients(net, TASK, batch, Noise())
            written.append(gradients(net))
        for name, expected in written[1].items():
            torch.testing.assert_close(written[0][name], expected, rtol=0, atol=1e-12)


def test_a_channel_signal_is_as_long_as_a_dense_one(batch):
    net = NETS["conv"](IN_SHAPE, 10, channels=[200, 100], hidden=12).double().to(batch.x.device)
    channel, dense = bound(DFA(connection="channel"), net, batch), bound(DFA(), net, batch)
    for index, space in enumerate((64, 16, 1)):
        lengths = channel.get_buffer(f"B{index}").norm(dim=1) * space**0.5, dense.get_buffer(f"B{index}").norm(dim=1)
        torch.testing.assert_close(lengths[0].mean(), lengths[1].mean(), rtol=0.1 if index < 2 else 0.3, atol=0)


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_aligned_on_a_linear_net_begins_as_backprop(memory, batch):
    net = linear_net(batch.x.device)
    rule = bound(DFA(feedback="aligned", memory=memory), net, batch)
    for step, equal in ((0, True), (1, False)):
        written = []
        for each in (rule, Backprop()):
            zero_grad(net)
            each.gradients(net, TASK, batch, Noise())
            written.append(gradients(net))
        close = [torch.allclose(written[0][name], g, rtol=0, atol=1e-10) for name, g in written[1].items()]
        assert all(close) == equal, step
        torch.optim.SGD(net.parameters(), lr=0.5).step()


@pytest.mark.parametrize("connection", ["dense", "channel"])
def test_aligned_is_the_mean_jacobian(connection, batch):
    """On a linear net, that of convolutions, the product of the weights; with a channel, its mean over space."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    net = net.to(batch.x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rule = bound(DFA(feedback="aligned", connection=connection), net, batch)
    last = net[3].weight.detach()
    spread = last.view(10, 2, 6, 6)
    first = torch.nn.functional.conv_transpose2d(spread, net[1].weight.detach())
    for index, expected in enumerate((first, spread)):
        expected = expected.mean((2, 3)) if connection == "channel" else expected.flatten(1)
        torch.testing.assert_close(rule.get_buffer(f"B{index}"), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("feedback", [*FEEDBACKS, "aligned"])
@pytest.mark.parametrize("make", [DFA, DRTP])
@pytest.mark.filterwarnings("ignore:drtp")
def test_every_initialisation_lowers_the_loss(make, feedback, batch):
    for connection in ("dense", "channel"):
        net = conv_net(batch.x.device)
        rule = bound(make(feedback=feedback, connection=connection), net, batch)
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        losses = []
        for step in range(20):
            zero_grad(net)
            losses.append(float(rule.gradients(net, TASK, batch, Noise(0, step))["loss"]))
            optimizer.step()
        assert losses[-1] < losses[0]


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="feedback: found 'randn', allowed: uniform or kaiming or .* or aligned"):
        DFA(feedback="randn")
    with pytest.raises(UserError, match="connection: found 'sparse', allowed: dense or channel"):
        DFA(connection="sparse")
    with pytest.raises(UserError, match="memory: found 'slow', allowed: fast or flat"):
        DFA(memory="slow")


@pytest.mark.parametrize("rule", [DFA(signal_scale=0.3), DRTP()], ids=["dfa", "drtp"])
def test_the_known_gradient_is_that_of_the_local_loss(rule, batch):
    """Two ways to the same numbers: the signal as it is, and autograd through <h, signal B>."""
    net = NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12, activation="tanh").double().to(batch.x.device)
    bound(rule, net, batch)
    signal = torch.randn(32, 10).to(batch.x)
    for index, segment in enumerate(rule.segments[:-1]):
        h = torch.randn(32, *segment.shape).to(batch.x).requires_grad_()
        (expected,) = torch.autograd.grad(rule.local_loss(index, h, signal), h)
        torch.testing.assert_close(rule.local_gradient(index, h.detach(), signal), expected, rtol=1e-12, atol=1e-16)
