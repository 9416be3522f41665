"""Where nets with shortcuts, attention and several inputs can be cut, and that local rules train them there."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, UserError, owners, taps
from bpfree.local.cut import cut
from bpfree.local.segments import stages
from bpfree.nets import NETS
from bpfree.rules import DFA, RULES, MonoForward
from bpfree.runs.config_file import load_config
from tests.helpers import IN_SHAPE, TASK, bound, zero_grad


class Reread(nn.Module):
    """Each segment reads what the one before made of the input, and the raw input again."""

    def __init__(self, embedded=False):
        super().__init__()
        self.embed = nn.Linear(64, 64) if embedded else nn.Identity()
        self.first, self.second, self.out = nn.Linear(64, 20), nn.Linear(84, 20), nn.Linear(84, 10)

    def forward(self, x):
        x = self.embed(x.flatten(1))
        h = self.first(x).tanh()
        h = self.second(torch.cat([h, x], 1)).tanh()
        return self.out(torch.cat([h, x], 1))


class Attention(nn.Module):
    """Two residual layers of attention over the rows of an image: torch's, and one by hand."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(8, 12), TorchAttention(), OwnAttention()
        self.out = nn.Linear(96, 10)

    def forward(self, x):
        return self.out(self.second(self.first(self.embed(x.squeeze(1)))).flatten(1))


class TorchAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(12, 2, batch_first=True), nn.LayerNorm(12)

    def forward(self, h):
        return self.norm(h + self.attend(h, h, h)[0])


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, h):
        weights = (self.q(h) @ self.k(h).transpose(1, 2) / 12**0.5).softmax(-1)
        return h + weights @ self.v(h)


def nets():
    """Each with taps that are sound."""
    torch.manual_seed(0)
    residual = NETS["resnet18"](IN_SHAPE, 10, width=3)
    return {
        "residual": (residual, stages(residual)),
        "residual, two cuts": (residual, ("block2_1", "block4_1")),
        "several inputs": (Reread(), ("first", "second")),
        "attention": (Attention(), ("embed", "first", "second")),
    }


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("make", [DFA, lambda taps: DFA(memory="flat", taps=taps), MonoForward])
def test_each_segment_learns_from_its_own_loss_alone(kind, make, batch):
    """Each parameter belongs to one segment, and its gradient is that of this segment's loss, by autograd."""
    net, names = nets()[kind]
    net = net.double().to(batch.x.device)
    rule = bound(make(taps=names), net, batch)
    assert [s.name for s in rule.segments] == [*names, "output"]
    owned = [name for segment in rule.segments for name in segment.parameters]
    assert sorted(owned) == sorted(name for name, _ in net.named_parameters())
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise())
    hidden = []
    with cut(net, rule.taps, lambda i, h: hidden.append(h)):
        out = net(batch.x)
    leaf = out.detach().requires_grad_()
    error = torch.autograd.grad(TASK.loss(leaf, batch), leaf)[0]
    signal = error if rule.needs_error else TASK.target(batch)
    losses = [rule.local_loss(i, h, signal) for i, h in enumerate(hidden)] + [TASK.loss(out, batch)]
    for segment, loss in zip(rule.segments, losses, strict=True):
        parameters = [net.get_parameter(name) for name in segment.parameters]
        for p, expected in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["several inputs", "attention"])
@pytest.mark.parametrize("rule", ["dfa", "mono_forward"])
def test_they_learn_real_digits(kind, rule, digits_data, device):
    net, names = nets()[kind]
    x, y = digits_data.train.x / 16, digits_data.train.y
    test = (digits_data.test.x / 16, digits_data.test.y)
    optimizer = {"name": "adam", "lr": 5e-3}
    run = bpfree.fit(
        net, (x, y), RULES[rule](taps=names), epochs=12, optimizer=optimizer, test=test, device=str(device)
    )
    assert run.result["test"]["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("net", "names", "message"),
    [
        (
            NETS["resnet18"](IN_SHAPE, 10, width=3),
            ["block2_1.body.0"],
            "'conv.weight' of segment 'block2_1.body.0' .* by a connection around tap 'block2_1.body.0'",
        ),
        (Attention(), ["second.q"], "'embed.weight' of segment 'second.q' .* by a connection around tap 'second.q'"),
        (Attention(), ["first.attend"], "'embed.weight' of segment 'first.attend' .* by a connection around tap"),
        (Reread(embedded=True), ["first"], "'embed.weight' of segment 'first' .* by a connection around tap 'first'"),
    ],
    ids=["inside a residual block", "a query", "attention", "an input that has weights"],
)
def test_a_cut_that_leaks_is_refused_and_says_why(net, names, message, batch):
    net = net.to(batch.x)
    with pytest.raises(UserError, match=message):
        bound(DFA(taps=names), net, batch)
    tap = next((tap for tap in taps(net, batch.x[:2]) if tap.name == names[0]), None)
    if tap is None:
        assert names == ["first.attend"], "what gives no tensor is not in the list"
    else:
        with pytest.raises(UserError) as told:
            owners(net, names, batch.x[:2])
        assert tap.refused == str(told.value)


def test_an_input_with_weights_can_be_cut_off_by_itself(batch):
    net = Reread(embedded=True).to(batch.x)
    rule = bound(MonoForward(taps=["embed", "first", "second"]), net, batch)
    assert rule.segments[0].parameters == ("embed.weight", "embed.bias")


@pytest.mark.parametrize("kind", nets())
def test_the_list_says_what_owners_says(kind, batch):
    """Pieces add up to the net; cuts that are sound alone are sound together; the automatic ones are marked."""
    net, _ = nets()[kind]
    net = net.to(batch.x)
    before = {name: b.clone() for name, b in net.named_buffers()}
    found = taps(net, batch.x[:3])
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())
    assert not any(m._forward_hooks for m in net.modules())
    assert found[-1].name == "output"
    assert sum(tap.parameters for tap in found) == sum(p.numel() for p in net.parameters())
    sound = [tap.name for tap in found if tap.refused is None]
    segments = owners(net, sound, batch.x[:3])
    assert [segment.name for segment in segments] == [*sound, "output"]
    assert {tap.name: tap.shape for tap in found}.items() >= {s.name: s.shape for s in segments}.items()
    automatic = bound(DFA(), net, batch).taps
    assert tuple(tap.name for tap in found if tap.auto) == automatic
    if isinstance(net, nn.Sequential):
        assert automatic == stages(net)


def test_bytes_are_what_the_backward_pass_keeps():
    """By hand: what tanh gives serves its own derivative and the next layer; a ReLU in place adds nothing."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(0.5))
    found = {tap.name: tap.activation_bytes for tap in taps(net, torch.randn(7, 4))}
    assert found["0"] == 0, "the input is there anyway"
    assert found["1"] == 6 * 4
    assert found["2"] == 0
    assert found["3"] == 5 * 4
    assert 5 <= found["output"] <= 2 * 5 * 4, "a mask"
    net = NETS["mlp"](8, 2, hidden=[6, 6], activation="tanh").double()
    assert sum(tap.activation_bytes for tap in taps(net, torch.randn(7, 8, dtype=torch.float64))) == 2 * 6 * 8


def test_what_runs_twice_or_never_is_not_in_the_list():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.never = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    assert [tap.name for tap in taps(Twice(), torch.randn(2, 3))] == ["output"]


def test_the_list_prints_as_a_table_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "sound" in str(taps(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))))


def test_a_submodule_may_be_called_output(batch):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.classify = nn.Linear(64, 9), nn.Linear(9, 10)

        def forward(self, x):
            return self.classify(self.output(x.flatten(1)).tanh())

    net = Named().to(batch.x)
    assert [(tap.name, tap.refused is None) for tap in taps(net, batch.x)] == [("output", True), ("output", False)]
    assert bound(DFA(taps=["output"]), net, batch).taps == ("output",)


@pytest.mark.parametrize("rule", [name for name in RULES if issubclass(RULES[name], bpfree.LocalRule)])
def test_auto_is_the_default_in_so_many_words(rule, batch):
    config = load_config("digits/dfa", [f"rule={rule}", "rule.taps=auto"])
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 11], activation="tanh").to(batch.x)
    found = [bound(RULES[rule](**options), net, batch).taps for options in ({}, {"taps": config.rule["taps"]})]
    assert found[0] == found[1]
    assert found[0] in (stages(net), stages(net)[:-1])  # rules with auxiliary nets keep the read-out with its stage
    with pytest.raises(UserError, match=r"taps: found 'fc1', allowed: ('auto', a number, or a list|a list of text or)"):
        RULES[rule](taps="fc1")
    with pytest.raises(UserError, match=r"rule.taps: found 'fc1', allowed: a list of text or int or auto or none"):
        load_config("digits/dfa", [f"rule={rule}", "rule.taps=fc1"])


def test_without_samples_the_first_layer_tells_what_the_net_takes():
    for net, shape in (
        (NETS["mlp"]((1, 8, 8), 10, hidden=[12]), (64,)),
        (NETS["conv"]((3, 32, 32), 10, channels=[4, 4], hidden=8), (3, 32, 32)),
        (NETS["resnet18"]((3, 224, 224), 10, width=2), (3, 8, 8)),
    ):
        assert taps(net) == taps(net, torch.zeros(2, *shape))
    with pytest.raises(UserError, match="x: found None, and the input of Embedding cannot be guessed"):
        taps(nn.Embedding(5, 3))
