"""The two shapes of rule that share machinery: what a local rule may touch, and when."""

import copy

import pytest
import torch
from torch import nn

from bpfree.errors import UserError
from bpfree.local.cut import cut
from bpfree.local.rule import LocalRule
from bpfree.nets import NETS
from bpfree.noise import Noise
from bpfree.rules import DFA, RULES, MonoForward
from bpfree.training.trainer import Trainer
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, gradients, jolt, net_for, same, zero_grad


def nets():
    mlp = NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16, 12], batch_norm=True, dropout=0.3)
    conv = NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=16, batch_norm=True, dropout=0.3)
    return {"mlp": mlp.double(), "conv": conv.double()}


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_flat_equals_fast_to_the_bit(kind, precision, batch):
    """Same dropout masks, same batch statistics, and those updated once: three steps of training do not differ."""
    states = []
    for memory in ("fast", "flat"):
        torch.manual_seed(0)
        net = nets()[kind].float()
        trainer = Trainer(net, DFA(memory=memory), TASK, "adam", compute=precision)
        for _ in range(3):
            trainer.step(Batch(batch.x.float().cpu(), batch.y.cpu()))
        states.append(copy.deepcopy(net.state_dict()))
    assert same(*states)
    assert int(states[0]["norm1.num_batches_tracked"]) == 3


@pytest.mark.parametrize("rule", [DFA(), DFA(memory="flat"), MonoForward()], ids=["dfa", "dfa-flat", "mono_forward"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_each_parameter_is_moved_by_its_own_segments_loss_alone(rule, kind, batch):
    """What the rule wrote is, segment by segment, the gradient of that segment's loss and of nothing else."""
    net = nets()[kind].to(batch.x.device)
    bound(rule, net, batch)
    noise = Noise(0, 0)
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, noise)
    written = {name: p.grad for name, p in net.named_parameters()}
    hidden = []
    with noise.global_rng(batch.x.device), cut(net, rule.taps, lambda i, h: hidden.append(h)):
        out = net(batch.x)
    leaf = out.detach().requires_grad_()
    error = torch.autograd.grad(TASK.loss(leaf, batch), leaf)[0]
    signal = error if rule.needs_error else TASK.target(batch)
    losses = [rule.local_loss(i, h, signal) for i, h in enumerate(hidden)] + [TASK.loss(out, batch)]
    parameters = dict(net.named_parameters())
    for segment, loss in zip(rule.segments, losses, strict=True):
        own = torch.autograd.grad(loss, [parameters[name] for name in segment.parameters])
        for name, expected in zip(segment.parameters, own, strict=True):
            torch.testing.assert_close(written[name], expected, rtol=0, atol=1e-14)
    assert sum(len(s.parameters) for s in rule.segments) == len(parameters)


@pytest.mark.parametrize("make", [DFA, MonoForward])
def test_the_layout_of_images_changes_nothing_and_errors_come_in_it(make, batch):
    """Nets are trained with channels last; an error in another order makes each step slower."""
    written, strides = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nets()["conv"].to(device=batch.x.device, memory_format=layout)
        rule = bound(make(), net, batch)
        learn = rule.learn_segment

        def watched(index, h, signal, learn=learn):
            h.grad_fn.register_prehook(lambda errors: strides.append((h.stride(), errors[0].stride())))
            return learn(index, h, signal)

        rule.learn_segment = watched
        rule.gradients(net, TASK, batch, Noise(0, 0))
        written.append(gradients(net))
    for name, expected in written[0].items():
        torch.testing.assert_close(written[1][name], expected)
    assert len(strides) == 6
    assert all(error == h for h, error in strides)


def test_a_segment_does_not_see_what_comes_after_it(batch):
    net = net_for("mono_forward", batch.x.device)
    rule = bound(MonoForward(), net, batch)
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    before = [[p.grad.clone() for p in unit] for unit in rule.units(net)]
    for last in (2, 1):
        jolt(rule.units(net)[last])
        zero_grad(net, rule)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        for unit, grads in list(zip(rule.units(net), before, strict=True))[:last]:
            assert all(torch.equal(p.grad, g) for p, g in zip(unit, grads, strict=True))
        assert not torch.equal(rule.units(net)[last][0].grad, before[last][0])


def test_taps_by_name_on_any_module(batch):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({"first": nn.Linear(64, 20), "second": nn.Linear(20, 20)})
            self.out = nn.Linear(20, 10)

        def forward(self, x):
            h = self.body["first"](x.flatten(1)).tanh()
            return self.out(h + self.body["second"](h).tanh())

    net = Mine().double().to(batch.x.device)
    rule = bound(MonoForward(taps=["body.first"]), net, batch)
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    assert [s.name for s in rule.segments] == ["body.first", "output"]
    assert {"loss/body.first", "loss", "accuracy"} <= scalars.keys()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", RULES)
def test_frozen_parameters_stay_out(name, batch):
    """A frozen first layer gets no gradient, and the rest learns all the same."""
    net = net_for(name, batch.x.device)
    frozen = list(net.parameters())[:2]
    for p in frozen:
        p.requires_grad_(False)
    rule = bound(RULES[name](), net, batch)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert all(p.grad is None for p in frozen)
    assert len(gradients(net)) >= 2
    owned = {id(p) for unit in rule.units(net) for p in unit}
    assert not owned & {id(p) for p in frozen}


class InOnePiece(nn.Module):
    """A connection goes around every layer but the last."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 10)

    def forward(self, x):
        h = self.a(x.flatten(1)).tanh()
        return (
            self.c(self.b(h).tanh() + 0.1 * h)[:, :10] + 0.01 * self.b(h)[:, :10] + 0.01 * self.a(x.flatten(1))[:, :10]
        )


LOCAL = [name for name, rule in RULES.items() if issubclass(rule, LocalRule)]


@pytest.mark.parametrize("name", LOCAL)
def test_a_net_in_one_piece_is_refused_and_not_trained_by_backprop(name, batch):
    with pytest.raises(UserError, match="taps: none were given, and InOnePiece has no block behind which it can be"):
        bound(RULES[name](), InOnePiece().to(batch.x), batch)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(batch.x)
    try:
        bound(RULES[name](), single, batch)
    except UserError as error:
        assert "no hidden segment" in str(error)  # noqa: PT017, forward-forward does not learn its only layer


@pytest.mark.parametrize("name", LOCAL)
def test_a_sequential_in_a_sequential_is_cut_as_by_itself(name, batch):
    net = nn.Sequential(NETS["mlp"](IN_SHAPE, 10, activation="tanh")).double().to(batch.x.device)
    by_itself = bound(RULES[name](), net[0], batch).taps
    assert by_itself[0] == "act1"
    assert bound(RULES[name](), net, batch).taps == tuple(f"0.{tap}" for tap in by_itself)


def test_heads_of_frozen_segments_learn(batch):
    """Predictions may be read from them."""
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9]).double().to(batch.x.device)
    net.fc1.requires_grad_(False)
    rule = bound(MonoForward(read="sum"), net, batch)
    scalars = rule.gradients(net, TASK, batch, Noise())
    assert "loss/act1" in scalars
    assert all(bool(head.weight.grad.abs().sum() > 0) for head in rule.heads)
    assert net.fc1.weight.grad is None
