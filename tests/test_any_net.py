"""Nets as people have them: each rule trains them, or says why not."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import bpfree
from bpfree import LocalRule, Noise, UserError, taps
from bpfree.autotaps import find_segments
from bpfree.cut import stages
from bpfree.nets import NETS
from bpfree.rules import DFA, RULES, Backprop, MonoForward
from bpfree.tasks import Classify
from bpfree.trainer import Trainer
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, gradients, net_for, same
from tests.nets_people_have import B, Checkpointed, Plain, ResNet, kinds, made

KINDS = kinds()


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
    if (kind, rule) in {
        ("spectral norm", "pepita"),
        *(("checkpointed", each) for each in ("fa", "usf", "brsf", "frsf")),
    }:
        pytest.xfail("another part of the work")
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
            if "the first step failed" in str(error):
                raise
            return
    assert all(bool(value.isfinite()) for value in scalars.values())
    assert not same(before, net.state_dict())
    assert trainer.predict(batch.x).shape == (B, KINDS[kind].classes)


LOCAL = ["dfa", "drtp", "local", "mono_forward", "predsim", "cwcomp", "forward_forward", "backprop"]


@pytest.mark.parametrize("in_one", [False, True], ids=["each block", "taps within one region"])
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("rule", [*LOCAL, "dfa-flat"])
def test_activation_checkpointing_changes_nothing(rule, in_one, early_stop, batch):
    """A tapped module that runs again in the backward pass does not learn twice."""
    name, _, memory = rule.partition("-")
    written = []
    for make in (Plain, Checkpointed):
        torch.manual_seed(0)
        net = make(in_one=in_one).to(batch.x)
        learner = RULES[name](**({"memory": memory} if memory else {}))
        with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
            bound(learner, net, batch).gradients(net, TASK, batch, Noise(0, 3))
        written.append({name: p.grad for name, p in net.named_parameters()})
    assert written[0].keys() == written[1].keys()
    for key, expected in written[0].items():
        torch.testing.assert_close(written[1][key], expected, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize("options", [{}, {"taps": ["rest.blocks.0"]}, {"taps": ["rest.blocks.0", "rest.blocks.1"]}])
def test_reentrant_checkpointing_is_refused_with_the_cure(options, in_one, batch):
    """It hides its graph, so that every cut rule would be backprop."""

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rest = nn.Linear(64, 64), Checkpointed(reentrant=True, in_one=in_one)

        def forward(self, x):
            return self.rest(self.embed(x.flatten(1)))

    net = Embedded().to(batch.x)
    for rule in (DFA(**options), MonoForward(**options)):
        with pytest.raises(UserError, match=r"'rest.blocks.\d.0.weight' learns by backprop .* Use use_reentrant"):
            bound(rule, net, batch)
    assert all(p.grad is None for p in net.parameters())
    Trainer(net, Backprop(), TASK).step(batch)
    Trainer(net, {"name": "es", "population": 4, "evaluator": "loop"}, TASK).step(batch)


def test_parameters_that_do_not_learn_anyway_are_no_hindrance(batch):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed, self.first, self.out = nn.Linear(64, 30), nn.Linear(30, 20), nn.Linear(20, 10)
            self.extra = nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                h = self.fixed(x.flatten(1)).tanh()
            return self.out(self.first(h).tanh())

    net = Unused().to(batch.x)
    rule = bound(DFA(), net, batch)
    assert rule.taps == ("first",)
    rule.gradients(net, TASK, batch, Noise())
    assert net.fixed.weight.grad is None


def trained(net, rule, batch, steps=3):
    options = {"population": 4} if "population" in RULES[rule].__init__.__code__.co_varnames else {}
    if options:
        options["evaluator"] = "in_place"
    torch.manual_seed(1)
    trainer = Trainer(net, {"name": rule, **options}, TASK, "sgd")
    for _ in range(steps):
        trainer.step(batch)
    return trainer


class OfPlain(nn.Module):
    """Its method is compiled, not the module."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.run = torch.compile(net.__call__, backend="eager")

    def forward(self, x):
        return self.run(x)


COMPILED = {
    "in place": lambda net: (net.compile(backend="eager"), net)[1],
    "wrapped": lambda net: torch.compile(net, backend="eager"),
    "a part of it": lambda net: (net[2].compile(backend="eager"), net)[1],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("rule", [name for name in RULES if "noprop" not in name])
def test_a_compiled_net_trains_as_the_net_itself(rule, how, batch):
    plain = net_for(rule, batch.device)
    net = COMPILED[how](copy.deepcopy(plain))
    torch._dynamo.reset()
    net(batch.x)  # so that code without any hooks is there already
    before = [m._compiled_call_impl for m in net.modules()]
    expected = trained(plain, rule, batch).predict(batch.x)
    trainer = trained(net, rule, batch)
    assert torch.equal(trainer.predict(batch.x), expected)
    inside = getattr(net, "_orig_mod", net)
    if rule == "backprop" and how != "wrapped":
        for name, p in inside.named_parameters():
            torch.testing.assert_close(p, plain.get_parameter(name), rtol=0, atol=1e-12)
    else:
        assert same(dict(plain.state_dict()), dict(inside.state_dict()))
    assert [m._compiled_call_impl for m in net.modules()] == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", COMPILED)
def test_a_rule_can_be_given_a_compiled_net_by_hand(how, batch):
    plain = net_for("dfa", batch.device)
    net = COMPILED[how](copy.deepcopy(plain))
    net(batch.x)
    for options in ({}, {"taps": ["act1"]}):
        written = []
        for each in (plain, net):
            each.zero_grad()
            rule = bound(DFA(**options), each, batch)
            rule.gradients(each, TASK, batch, Noise(0, 0))
            written.append([p.grad.clone() for unit in rule.units(each) for p in unit])
            assert [name.removeprefix("_orig_mod.") for name in rule.taps] == (
                ["act1"] if options else ["act1", "act2"]
            )
        assert all(torch.equal(a, b) for a, b in zip(*written, strict=True))
