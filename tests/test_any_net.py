"""Nets as people have them: each rule trains them, or says why not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from bpfree import UserError
from bpfree.autotaps import find_segments
from bpfree.cut import stages
from bpfree.nets import NETS
from bpfree.rules import DFA, RULES
from bpfree.tasks import Classify
from bpfree.trainer import Trainer
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, bound, same
from tests.nets_people_have import B, kinds, made

KINDS = kinds()
REFUSALS = (
    "no block behind which it can be cut|needs denoising blocks|works on samples that are one tensor|writes the label|"
    "forward-mode derivative|feedback alignment|no weight of a layer|would pass through|one Linear or convolution|"
    "channels, allowed|pepita"
)


def batch_of(kind):
    return Batch(KINDS[kind].x, torch.arange(B) % KINDS[kind].classes)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_cuts_are_found_at_block_level(kind):
    net, batch, expected = made(KINDS[kind]), batch_of(kind), KINDS[kind].taps
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    if expected:
        rule = bound(DFA(), net, batch, Classify(KINDS[kind].classes))
        assert rule.taps == expected
        assert rule.notes() == {"taps": ", ".join(expected)}
        owned = [name for segment in rule.segments for name in segment.parameters]
        assert sorted(owned) == sorted(name for name, p in net.named_parameters() if p.requires_grad)
    else:
        with pytest.raises(UserError, match="'emb.weight' is used before and behind each of them"):
            find_segments(net, batch.x)
    if not expected:
        assert torch.equal(random, torch.get_rng_state())
    assert same(before, net.state_dict())
    assert not any(m._forward_hooks for m in net.modules())


class Holds(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("name", ["resnet18", "mlp", "conv"])
def test_in_a_module_of_ones_own_the_cuts_are_those_of_the_sequential(name):
    net = NETS[name](IN_SHAPE, 10)
    found = find_segments(Holds(net), torch.randn(2, *IN_SHAPE))
    assert tuple(segment.name.removeprefix("net.") for segment in found.segments[:-1]) == stages(net)
    assert found.searched
    assert not find_segments(net, torch.randn(2, *IN_SHAPE)).searched


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_trains_them_or_says_why_not(kind, rule):
    net, batch = made(KINDS[kind]), batch_of(kind)
    options = {"population": 4} if "population" in RULES[rule].__init__.__code__.co_varnames else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(net, {"name": rule, **options}, Classify(KINDS[kind].classes), "sgd")
        before = copy.deepcopy(net.state_dict())
        try:
            for _ in range(2):
                scalars = trainer.step(batch)
        except UserError as error:
            assert "the first step failed" not in str(error)
            print(error)
            return
    assert all(bool(value.isfinite()) for value in scalars.values())
    assert not same(before, net.state_dict())
    assert trainer.predict(batch.x).shape == (B, KINDS[kind].classes)
