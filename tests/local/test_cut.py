import weakref

import pytest
import torch
from torch import nn

from bpfree.errors import UserError
from bpfree.local.autotaps import find_segments
from bpfree.local.cut import cut
from bpfree.local.segments import owners, stages
from bpfree.nets import NETS
from bpfree.nets.unchanged import unchanged_buffers


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


class Skip(nn.Module):
    """a -> b -> c, with a way around b that starts inside a's segment or behind it."""

    def __init__(self, sound: bool):
        super().__init__()
        self.a, self.act, self.b, self.c = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)
        self.sound = sound

    def forward(self, x):
        raw = self.a(x)
        h = self.act(raw)
        return self.c(self.b(h) + (h if self.sound else raw))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x).relu_())


def test_a_cut_pass_has_the_same_output_and_leaves_no_trace():
    net, x = mlp(), torch.randn(3, 4)
    before = net(x)
    with cut(net, ["1", "3"], lambda i, h: None):
        inside = net(x)
    assert torch.equal(before, inside)
    assert not any(module._forward_hooks for module in net.modules())


def test_each_output_is_attached_to_its_own_segment_only():
    net, seen = mlp(), []
    with cut(net, ["1", "3"], lambda i, h: seen.append(h)):
        net(torch.randn(3, 4))
    seen[1].sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["2.weight", "2.bias"]


def test_hooks_go_when_the_visit_fails():
    net = mlp()

    def fail(index, h):
        raise RuntimeError("visit")

    with pytest.raises(RuntimeError, match="visit"), cut(net, ["1"], fail):
        net(torch.randn(3, 4))
    assert not any(module._forward_hooks for module in net.modules())


def test_activations_are_freed_while_the_pass_goes_by():
    net, alive, refs = mlp(), [], []

    def visit(index, h):
        alive.append([ref() is not None for ref in refs])
        refs.append(weakref.ref(h))
        h.sum().backward()

    with cut(net, ["1", "3"], visit):
        net(torch.randn(3, 4))
    assert alive == [[], [False]], "the first segment's output outlived its segment"


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (mlp(), ("1", "3")),
        (NETS["mlp"]((1, 8, 8), 10, hidden=[5, 5], batch_norm=True, dropout=0.1), ("act1", "act2")),
        (NETS["conv"]((1, 28, 28), 10, batch_norm=True), ("act1", "act2", "act")),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ()),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2)), ("1",)),
    ],
)
def test_stages_end_behind_the_activation_and_before_pooling(net, expected):
    assert stages(net) == expected


def test_stages_of_another_module_are_refused_with_the_cure():
    with pytest.raises(UserError, match=r"Skip is not an nn.Sequential.*bpfree.taps\(net, x\) shows where"):
        stages(Skip(sound=True))


def test_owners_orders_the_taps_and_partitions_the_parameters():
    segments = owners(mlp(), ["3", "1"], torch.randn(2, 4))
    assert [s.name for s in segments] == ["1", "3", "output"]
    assert [s.parameters for s in segments] == [("0.weight", "0.bias"), ("2.weight", "2.bias"), ("4.weight", "4.bias")]
    assert [tuple(s.shape) for s in segments] == [(5,), (6,), (2,)]


def test_owners_leaves_buffers_and_random_state_alone():
    net = NETS["mlp"](4, 2, hidden=[3], batch_norm=True, dropout=0.5)
    before = {name: b.clone() for name, b in net.named_buffers()}
    x = torch.randn(8, 4)
    random_state = torch.get_rng_state()
    owners(net, ["act1"], x)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_sound_skip_is_taken_and_a_leak_is_named():
    x = torch.randn(2, 4)
    assert next(s.parameters for s in owners(Skip(sound=True), ["act"], x)) == ("a.weight", "a.bias")
    with pytest.raises(UserError, match=r"'a.weight' of segment 'act' is reached by the loss of segment 'output'"):
        owners(Skip(sound=False), ["act"], x)


def test_shared_weights_are_refused():
    net = mlp()
    net.add_module("again", nn.Linear(2, 5))
    net[2].weight = nn.Parameter(torch.randn(5, 5))
    net[2].bias = net[0].bias
    net[4] = nn.Linear(5, 2)
    with pytest.raises(UserError, match=r"'0.bias' of segment '1'"):
        owners(net, ["1", "3"], torch.randn(2, 4))


def test_an_in_place_change_of_a_tapped_activation_is_refused():
    with pytest.raises(UserError, match=r"tap 'a': its output is changed in place"):
        owners(InPlace(), ["a"], torch.randn(2, 4))


def test_in_place_within_a_segment_is_fine():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    assert len(owners(net, ["1"], torch.randn(2, 4))) == 2


def test_a_tap_must_exist_run_once_and_give_a_tensor():
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"tap '1' ran 2 times"):
        owners(net, ["1"], torch.randn(2, 4))
    with pytest.raises(UserError, match=r"unknown tap 'act'"):
        owners(net, ["act"], torch.randn(2, 4))
    with pytest.raises(UserError, match=r"tap '0' gives dict, .* or a tuple that begins with it"):
        owners(nn.Sequential(GivesMore("dict"), GivesMore("net")), ["0"], torch.randn(2, 4))


class GivesMore(nn.Module):
    """A layer that gives its features and something else."""

    def __init__(self, kind, uses=False):
        super().__init__()
        self.a, self.kind, self.uses = nn.Linear(4, 4), kind, uses

    def forward(self, x):
        x, more = x if isinstance(x, tuple) else (x["h"] if isinstance(x, dict) else x, 0)
        h = self.a(x + more if self.uses else x).tanh()
        return {"tuple": (h, 2 * h), "dict": {"h": h}, "net": h}[self.kind]


def test_a_tuple_is_cut_at_its_first_part_and_the_rest_must_not_be_used():
    """So do blocks of Hugging Face, which give their features and what a cache would keep."""
    torch.manual_seed(0)
    net = nn.Sequential(GivesMore("tuple"), GivesMore("tuple"), GivesMore("net"))
    x, seen = torch.randn(3, 4), []
    with cut(net, ["0", "1"], lambda i, h: seen.append(h)):
        out = net(x)
    assert torch.equal(out, net(x))
    seen[1].sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["1.a.weight", "1.a.bias"]
    with cut(net, ["0", "1"], lambda i, h: h + 1):
        moved = net(x)
    assert not torch.equal(moved, out)
    assert [segment.name for segment in owners(net, ["0", "1"], x)] == ["0", "1", "output"]
    leaks = nn.Sequential(GivesMore("tuple"), GivesMore("tuple", uses=True), GivesMore("net"))
    with pytest.raises(UserError, match="'0.a.weight' of segment '0' is reached by the loss of segment '1' too"):
        owners(leaks, ["0", "1"], x)
    wrapped = find_segments(nn.Sequential(leaks), x).segments
    assert [segment.name for segment in wrapped] == ["0.0.a", "0.1", "output"]


def test_shared_activations_are_named_by_every_place():
    """The default taps of such a Sequential name one module twice, and the error says so."""
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"tap '1' ran 2 times.*a module of its own"):
        owners(net, stages(net), torch.randn(2, 4))


def test_a_tap_at_the_end_of_the_net_is_refused():
    """The task's loss would train nothing."""
    x = torch.randn(2, 4)
    for net in (mlp(), nn.Sequential(*mlp(), nn.Softmax(1)), nn.Sequential(*mlp(), nn.Flatten())):
        with pytest.raises(UserError, match=r"tap '4' leaves no parameter to the output segment"):
            owners(net, ["1", "4"], x)
    frozen = mlp()
    frozen[4].requires_grad_(False)
    assert owners(frozen, ["1", "3"], x)[-1].parameters == (), "a frozen read-out is the user's own wish"
    with pytest.raises(UserError, match=r"tap '4' leaves no parameter"):
        owners(frozen, ["1", "4"], x)


class Reassigns(nn.Module):
    """Keeps a running mean, as many nets do, by assignment."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.layer(x - self.mean)


def test_a_rehearsal_leaves_reassigned_buffers_alone():
    net = Reassigns()
    before = net.mean
    with unchanged_buffers(net):
        net(torch.ones(3, 4))
    assert net.mean is before
    assert torch.equal(before, torch.zeros(4))
