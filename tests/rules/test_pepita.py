import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import Pepita
from tests.helpers import IN_SHAPE, TASK, bound, gradients, same, zero_grad


def mlp(batch, **options):
    torch.manual_seed(0)
    return NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation="tanh", **options).double().to(batch.x.device)


def error_of(net, batch):
    """e of each sample: softmax - Y."""
    with torch.no_grad():
        return net(batch.x).softmax(1) - TASK.target(batch)


def test_the_equation(batch):
    """dW_l = (h_l - h_l')^T h'_{l-1}, dW_L = e^T h'_{L-1}, written out by hand; means over the batch."""
    net = mlp(batch)
    rule = bound(Pepita(scale=0.3), net, batch)
    scalars = rule.gradients(net, TASK, batch, Noise())
    n = len(batch.y)
    with torch.no_grad():
        e = error_of(net, batch)
        x = batch.x.flatten(1)
        h, modulated = [x], [x + e @ rule.F]
        for layer in (net.fc1, net.fc2):
            h.append(layer(h[-1]).tanh())
            modulated.append(layer(modulated[-1]).tanh())
    for layer, d, below in (
        (net.fc1, h[1] - modulated[1], modulated[0]),
        (net.fc2, h[2] - modulated[2], modulated[1]),
        (net.fc3, e, modulated[2]),
    ):
        torch.testing.assert_close(layer.weight.grad, d.T @ below / n)
        torch.testing.assert_close(layer.bias.grad, d.mean(0))
    torch.testing.assert_close(scalars["loss"], TASK.loss(net(batch.x), batch).detach())


def test_dropout_masks_the_signal(batch):
    """h_l and h_l' count behind dropout, in both passes with the same mask, so that a dropped unit does not learn."""
    net = mlp(batch, dropout=0.5)
    masks = []
    for drop in (net.drop1, net.drop2):
        drop.register_forward_hook(lambda module, args, out: masks.append(out / args[0]))
    rule = bound(Pepita(scale=0.3), net, batch)
    masks.clear()
    rule.gradients(net, TASK, batch, Noise(0, 0))
    m = masks[:2]
    for first, second in zip(m, masks[2:], strict=True):
        torch.testing.assert_close(first, second)
        assert 0.3 < float((first == 0).double().mean()) < 0.7
    with torch.no_grad():
        h = [batch.x.flatten(1)]
        h += [m[0] * net.fc1(h[0]).tanh()]
        h += [m[1] * net.fc2(h[1]).tanh()]
        e = net.fc3(h[2]).softmax(1) - TASK.target(batch)
        modulated = [h[0] + e @ rule.F]
        modulated += [m[0] * net.fc1(modulated[0]).tanh()]
        modulated += [m[1] * net.fc2(modulated[1]).tanh()]
    for layer, d, below in (
        (net.fc1, h[1] - modulated[1], modulated[0]),
        (net.fc2, h[2] - modulated[2], modulated[1]),
        (net.fc3, e, modulated[2]),
    ):
        torch.testing.assert_close(layer.weight.grad, d.T @ below / len(batch.y))


def test_to_first_order_the_signal_is_the_error_through_the_jacobian(batch):
    """As F goes to 0, dW_l / |F| tends to -(e F J_l)^T h_{l-1}, and ten times as small an F is ten times as near."""
    net = mlp(batch)
    x = batch.x.flatten(1)
    distances = []
    for scale in (1e-3, 1e-4):
        rule = bound(Pepita(scale=scale), net, batch)
        zero_grad(net)
        rule.gradients(net, TASK, batch, Noise())
        below, distance = x, 0.0
        for layer, depth in ((net.fc1, 3), (net.fc2, 5)):
            h, change = torch.autograd.functional.jvp(net[1:depth], x, error_of(net, batch) @ rule.F)
            expected = -change.T @ below / len(x) / scale
            distance += float((layer.weight.grad / scale - expected).norm() / expected.norm())
            below = h
        distances.append(distance)
    assert distances[0] < 1e-2
    assert distances[1] == pytest.approx(distances[0] / 10, rel=0.05)


def test_a_convolution_gets_the_mean_over_positions(batch):
    torch.manual_seed(0)
    net = NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12).double().to(batch.x.device)
    rule = bound(Pepita(scale=0.3), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    with torch.no_grad():
        modulated = batch.x + (error_of(net, batch) @ rule.F).view_as(batch.x)
        difference = net.conv1(batch.x).relu() - net.conv1(modulated).relu()  # before pooling
        patches = F.unfold(modulated, 3, padding=1)  # [B, 9, positions]
    expected = torch.einsum("bcp,bkp->ck", difference.flatten(2), patches) / len(batch.y) / 64
    torch.testing.assert_close(net.conv1.weight.grad.flatten(1), expected)


def test_both_passes_have_the_same_dropout_and_the_first_ones_statistics(batch):
    """Without modulation nothing changes between the passes, so that hidden layers stand still."""
    net = mlp(batch, dropout=0.5, batch_norm=True)
    rule = bound(Pepita(), net, batch)
    rule.F.zero_()
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert float(net.fc3.weight.grad.abs().max()) > 0
    for layer in (net.fc1, net.fc2):
        assert not bool(layer.weight.grad.any())
    assert float(net.norm1.running_mean.abs().max()) > 0
    assert int(net.norm1.num_batches_tracked) == 1
    assert net.norm1.weight.grad is None


def test_an_activation_in_place_changes_nothing(batch):
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(inplace), nn.Linear(12, 9), nn.ReLU(inplace)]
        net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(9, 10)).to(batch.x)
        rule = bound(Pepita(), net, batch)
        rule.gradients(net, TASK, batch, Noise())
        found.append(gradients(net))
    assert same(*found)


def test_f_is_the_authors(batch):
    rule = bound(Pepita(), mlp(batch), batch)
    bound_of_f = 0.05 * (6 / 64) ** 0.5
    assert rule.F.shape == (10, 64)
    assert 0.95 * bound_of_f < float(rule.F.abs().max()) <= bound_of_f
    assert list(rule.parameters()) == []


def test_frozen_layers_are_left_alone(batch):
    net = mlp(batch)
    net.fc1.requires_grad_(False)
    rule = bound(Pepita(), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    assert set(gradients(net)) == {f"Sequential.fc{i}.{p}" for i in (2, 3) for p in ("weight", "bias")}
    assert [len(unit) for unit in rule.units(net)] == [0, 2, 2]


class Written(nn.Module):
    """A net whose layers are called by keyword, and whose body may be a region of activation checkpointing."""

    def __init__(self, *, reentrant=None, whole=False, wrap=lambda layer: layer):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.act1, self.drop = wrap(nn.Linear(64, 12)), nn.Tanh(), nn.Dropout(0.3)
        self.fc2, self.act2, self.out = wrap(nn.Linear(12, 9)), nn.Tanh(), nn.Linear(9, 10)
        self.reentrant, self.whole = reentrant, whole

    def body(self, x):
        return self.act2(self.fc2(input=self.drop(self.act1(self.fc1(input=x.flatten(1))))))

    def forward(self, x):
        region = (lambda x: self.out(self.body(x))) if self.whole else self.body
        h = region(x) if self.reentrant is None else checkpoint(region, x, use_reentrant=self.reentrant)
        return h if self.whole else self.out(h)


def learned(net, batch):
    rule = bound(Pepita(scale=0.3, taps=["act1", "act2"]), net, batch)
    rule.gradients(net, TASK, batch, Noise(0, 1))
    return gradients(net)


def test_keywords_checkpointing_and_compilation_change_nothing(batch):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 10)
    ).to(batch.x)
    rule = bound(Pepita(scale=0.3, taps=["2", "5"]), plain, batch)
    rule.gradients(plain, TASK, batch, Noise(0, 1))
    expected = list(gradients(plain).values())
    compiled = Written().to(batch.x)
    compiled.compile(backend="eager")
    with torch.no_grad():
        compiled(batch.x)
    nets = [Written(reentrant=False), Written(reentrant=False, whole=True), Written(whole=True), compiled]
    for net in nets:
        found = list(learned(net.to(batch.x), batch).values())
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(UserError, match=r"parameter 'fc1\.weight' .*gradients off|'fc1\.weight' learns by backprop"):
        learned(Written(reentrant=True).to(batch.x), batch)


@pytest.mark.parametrize(
    "wrap",
    [
        *(parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal),
        *(nn.utils.weight_norm, nn.utils.spectral_norm),
    ],
)
def test_parametrised_weights_learn_and_are_the_same_in_both_passes(wrap, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = Written(wrap=wrap).to(batch.x)
    assert all(bool(gradient.any()) for gradient in learned(net, batch).values())
    zero_grad(net)
    rule = bound(Pepita(taps=["act1", "act2"]), net, batch)
    rule.F.zero_()
    rule.gradients(net, TASK, batch, Noise())
    found = gradients(net)
    assert sorted(name for name in found if bool(found[name].any())) == ["Written.out.bias", "Written.out.weight"]


def test_the_gradient_of_a_parametrised_weight_is_that_of_its_value_through_the_parametrisation(batch):
    net, plain = Written(wrap=parametrizations.weight_norm).to(batch.x), Written().to(batch.x)
    for layer in ("fc1", "fc2"):
        plain.get_submodule(layer).weight.data.copy_(net.get_submodule(layer).weight)
    found, of_values = learned(net, batch), learned(plain, batch)
    for layer in ("fc1", "fc2"):
        originals = dict(net.get_submodule(layer).parametrizations.weight.named_parameters())
        weight = net.get_submodule(layer).weight
        through = torch.autograd.grad(weight, originals.values(), of_values[f"Written.{layer}.weight"])
        for name, expected in zip(originals, through, strict=True):
            torch.testing.assert_close(found[f"Written.{layer}.parametrizations.weight.{name}"], expected)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 9), nn.Linear(9, 10)

    def forward(self, left, right):
        return self.b(self.a((left + right).flatten(1)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.GRU(8, 9, batch_first=True), nn.Linear(9, 9), nn.Linear(9, 10)

    def forward(self, x):
        return self.c(self.b(self.a(x.squeeze(1))[0][:, -1]))


def test_what_cannot_work_is_refused(batch):
    deep = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 9)), nn.Tanh(), nn.Linear(9, 10)
    ).to(batch.x)
    with pytest.raises(UserError, match=r"segment '2': found 1.0, 1.2 trainable Linear or convolution, allowed: one"):
        bound(Pepita(), deep, batch)
    net = NETS["conv"](IN_SHAPE, 10, channels=[4]).double().to(batch.x.device)
    rule = bound(Pepita(taps=["pool1", "act"]), net, batch)
    with pytest.raises(UserError, match=r"tap 'pool1': .* shape \[4, 4, 4\], but that of layer 'conv1' is \[4, 8, 8\]"):
        rule.gradients(net, TASK, batch, Noise())
    tokens = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 10))
    with pytest.raises(UserError, match="data: samples are of type torch.int64, but pepita adds the error to them"):
        bound(Pepita(), tokens, batch._replace(x=torch.zeros(32, 8, dtype=torch.int64)))
    with pytest.raises(UserError, match="net: it takes 2 tensors, but this rule or command works on samples that are"):
        Pepita(taps=["a"]).bind(Pair().to(batch.x), TASK, batch._replace(x=(batch.x, batch.x)))
    with pytest.raises(UserError, match=r"segment 'b': its parameter 'a\.weight_ih_l0' would not learn, .* layer 'b'"):
        bound(Pepita(taps=["b"]), Recurrent().to(batch.x), batch)
    with pytest.raises(UserError, match=r"scale: found 0(\.0)?, allowed: a number above 0"):
        Pepita(scale=0)
