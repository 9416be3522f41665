"""Fused updates: the same weights as together, with the gradients of one segment at a time."""

import copy

import pytest
import torch

from bpfree import LocalRule, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, net_for, same

LOCAL = [name for name, rule in RULES.items() if issubclass(rule, LocalRule)]


def trained(name, batch, update, **options):
    net = net_for(name, batch.x.device)
    trainer = Trainer(net, RULES[name](**options), TASK, "adam", compute={"update": update}, clip=0.5)
    for _ in range(4):
        trainer.step(batch)
    return copy.deepcopy(
        {**net.state_dict(), **{f"rule.{k}": v for k, v in trainer.rule.state_dict().items()}}
    ), trainer


@pytest.mark.parametrize("name", LOCAL)
def test_fused_updates_come_to_the_same_weights(name, batch):
    together, _ = trained(name, batch, "together")
    fused, trainer = trained(name, batch, "fused")
    assert same(together, fused)
    assert all(p.grad is None for p in [*trainer.net.parameters(), *trainer.rule.parameters()])
    assert trainer.rule.segment_done is None


def test_flat_feedback_fuses_too(batch):
    assert same(trained("dfa", batch, "together")[0], trained("dfa", batch, "fused", memory="flat")[0])


@pytest.mark.parametrize("name", ["mono_forward", "drtp", "dfa"])
def test_with_gradients_counted_memory_does_not_grow_with_depth(name):
    peaks = []
    for depth in (4, 12):
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[256] * depth, activation="tanh")
        rule = RULES[name](memory="flat") if name == "dfa" else RULES[name]()
        trainer = Trainer(net, rule, TASK, compute={"update": "fused"})
        batch = Batch(torch.randn(256, *IN_SHAPE), torch.arange(256) % 10)
        trainer.step(batch)
        before = copy.deepcopy(net.state_dict())
        peaks.append(trainer.step_memory(batch))
        assert same(before, net.state_dict()), "measuring learns nothing"
    assert peaks[1] < 1.1 * peaks[0]


def test_it_is_refused_where_units_do_not_learn_in_turn(batch):
    for name in ("backprop", "fa", "noprop_dt", "recombine"):
        with pytest.raises(UserError, match="update: found 'fused', but the units of"):
            Trainer(net_for(name, batch.x.device), name, TASK, compute={"update": "fused"}).step(batch)
    with pytest.raises(UserError, match="compute.update: found 'later', allowed: together or fused"):
        Trainer(net_for("dfa"), "dfa", TASK, compute={"update": "later"})
