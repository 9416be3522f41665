"""What LocalRule offers to whoever writes a rule: inputs, layers, default taps, and errors that say what to do."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from bpfree import LocalRule, Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import MonoForward
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound


class Looks(LocalRule):
    """Notes what it is shown, and learns nothing."""

    sees_inputs: ClassVar[bool] = True

    def __init__(self, needs_error=False, memory="flat"):
        super().__init__()
        self.needs_error, self.memory = needs_error, memory
        self.shown = {}

    def local_loss(self, index, h, signal):
        assert index not in self.shown, "a segment learns once a step"
        self.shown[index] = self.input_of(index), self.layers_of(index), h.detach()
        return 0 * h.sum()


@pytest.fixture
def net(batch):
    torch.manual_seed(0)
    return NETS["mlp"](IN_SHAPE, 10, hidden=[12, 11, 9], activation="tanh").double().to(batch.device)


@pytest.mark.parametrize(("needs_error", "memory"), [(False, "flat"), (True, "fast"), (True, "flat")])
def test_a_loss_sees_the_inputs_of_its_segment_and_of_its_layers(needs_error, memory, net, batch):
    rule = bound(Looks(needs_error, memory), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    assert sorted(rule.shown) == [0, 1, 2]
    before = batch.x
    for index in range(3):
        given, (layer,), h = rule.shown[index]
        assert torch.equal(given, before)
        assert not layer.x.requires_grad
        assert layer.name == f"fc{index + 1}"
        assert torch.equal(layer.x, before.flatten(1))
        assert layer.weight is net.get_submodule(layer.name).weight
        torch.testing.assert_close(h, (layer.response(layer.weight) + layer.layer.bias).tanh())
        before = h
    with pytest.raises(UserError, match="found segment 0, whose input is not kept now, allowed: within `local_loss`"):
        rule.input_of(0)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_layers_of_every_kind_respond_as_they_do(kind):
    rank = int(kind.__name__[4])
    batch = Batch(torch.randn(8, 4, *[6] * rank).double(), torch.arange(8) % 10)
    conv = kind(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular", bias=False)
    conv = nn.utils.parametrizations.spectral_norm(conv)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(6 * 3**rank, 10)).double()
    rule = bound(Looks(), net, batch)
    rule.gradients(net, TASK, batch, Noise())
    ((_, (layer,), h),) = rule.shown.values()
    assert layer.axis == 1
    kept = conv.parametrizations.weight[0]._u.clone()
    weight = layer.weight.detach().requires_grad_()
    out = layer.response(weight)
    torch.testing.assert_close(out, h, rtol=0.2, atol=0.1)  # a power iteration further
    y = torch.randn_like(out)
    torch.testing.assert_close(layer.hebbian(y), torch.autograd.grad(out, weight, y)[0])
    assert torch.equal(conv.parametrizations.weight[0]._u, kept), "looking changes nothing"


def test_a_rule_that_does_not_say_that_it_looks_is_told_how(net, batch):
    class Blind(LocalRule):
        def local_loss(self, index, h, signal):
            return h.square().mean() + 0 * self.input_of(index).sum()

    rule = bound(Blind(), net, batch)
    with pytest.raises(UserError, match="Blind: inputs are not kept. Write `sees_inputs: ClassVar"):
        rule.gradients(net, TASK, batch, Noise())


def test_a_rule_chooses_its_own_taps_unless_the_user_does(net, batch):
    class Early(Looks):
        def default_taps(self, net, x):
            assert len(x) == 2, "a few samples"
            return ["act1"]

    rule = bound(Early(), net, batch)
    assert rule.taps == ("act1",)
    assert rule.metadata() == {"taps": "act1"}
    asked = Early()
    LocalRule.__init__(asked, taps=["act2"])
    assert bound(asked, net, batch).taps == ("act2",)


def test_a_net_that_is_refused_is_not_trained_with_the_cuts_of_an_earlier_one(net, batch):
    rule = bound(MonoForward(taps=["act1"]), net, batch)
    with pytest.raises(UserError, match="unknown tap 'act1'"):
        rule.bind(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(batch.x), TASK, batch)
    with pytest.raises(UserError, match="MonoForward: not bound to a net"):
        rule.gradients(net, TASK, batch, Noise())
