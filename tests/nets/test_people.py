"""Nets that people have, on real digits: every rule trains and predicts with each, or says why it does not.

Where the net can be written as a Sequential of the same layers, each rule's gradients are those of that Sequential.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.local.rule import LocalRule
from bpfree.rule import Rule
from bpfree.rules import RULES, DeepSupervision
from bpfree.tasks import TASKS
from bpfree.training.trainer import Trainer
from bpfree.types import Batch
from tests.nets.people import CASES, Case

CUT = [name for name, rule in RULES.items() if issubclass(rule, LocalRule | DeepSupervision)]
"""Rules that need a place to cut the net. Deep supervision has its heads where the local rule would cut."""

REFUSED: dict[str, dict[str, str]] = {
    "resnet with skips": {"pepita": "found block1.conv1, block1.conv2 trainable"},
    "transformer": dict.fromkeys(CUT, "'embed.weight' is used before and behind"),
    "transformer, untied": {
        "forward_forward": "samples are torch.int64",
        "pepita": "samples are of type torch.int64",
        "cwcomp": "'embed' has 8 channels",
        "deeper_forward": "'embed' has 8 channels",
    },
    "u-net": {n: "cannot predict the class of each pixel" for n, rule in RULES.items() if "segment" not in rule.tasks},
    "two towers": dict.fromkeys(("forward_forward", "pepita"), "it takes 2 tensors"),
    "hugging face style": dict.fromkeys(("forward_forward", "pepita"), "it takes named tensors"),
    "spectral norm": {"forward_gradient": "no forward-mode derivative"},
    "gru": {"pepita": "segment 'gru': found no trainable Linear"},
}
"""By net, rules that refuse it, each with a part of the reason; docs/own_net.md lists them for readers.

A rule that is not named here must train the net. A new rule needs no entry unless it refuses one of these nets.
"""

SAMPLES = 12


def task_of(case: Case) -> object:
    return TASKS[case.task](case.classes, *([case.size] if case.size else []))


def made(case: Case) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    net = case.make()
    return net, Batch(case.x(SAMPLES), case.y(SAMPLES))


def trainable_values(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


OLD_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13)
"""torch 2.6 and 2.11 have no forward-mode derivative of activation checkpointing; 2.13 has one."""


def reason(name: str, rule: str) -> str | None:
    if OLD_TORCH and (name, rule) == ("checkpointed", "forward_gradient"):
        return "no forward-mode derivative"
    if RULES[rule].needs_net is not None:
        return "denois|cannot predict the class of each pixel"
    return REFUSED.get(name, {}).get(rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_every_rule_trains_it_or_says_why_not(name, rule):
    case = CASES[name]
    net, batch = made(case)
    trainer = Trainer(net, rule, task_of(case), {"name": "sgd", "lr": 0.05})
    if why := reason(name, rule):
        with pytest.raises(UserError, match=why):
            trainer.step(batch)
        return
    before = trainable_values(net)
    for _ in range(2):
        loss = trainer.step(batch)["loss"]
    assert loss.isfinite()
    moved = {key for key, value in trainable_values(net).items() if not torch.equal(value, before[key])}
    assert moved
    assert all(p.isfinite().all() for p in net.parameters())
    out = trainer.predict(batch.x)
    assert len(out) == SAMPLES
    assert out.isfinite().all()


def with_taps_of(rule: Rule, name: str) -> dict[str, object]:
    """The spec of a rule that cuts where this one does."""
    if isinstance(rule, DeepSupervision):
        return {"name": name, "rule": with_taps_of(rule.rule, "mono_forward")}
    return {"name": name, "taps": rule.taps} if isinstance(rule, LocalRule) else {"name": name}


@pytest.mark.parametrize("rule", [rule for rule, kind in RULES.items() if kind.needs_net is None])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.twin])
def test_gradients_are_those_of_the_same_layers_in_a_sequential(name, rule):
    case = CASES[name]
    if reason(name, rule):
        pytest.skip("the rule refuses this net")
    if getattr(RULES[rule], "copies_modules", False):
        pytest.skip("its heads depend on how a net is written")
    net, batch = made(case)
    net.double()
    batch = Batch(batch.x.double(), batch.y)
    twin = case.twin(copy.deepcopy(net))
    trainers = [Trainer(net, rule, task_of(case), {"name": "sgd", "lr": 0.0})]
    trainers[0].bind(batch)
    trainers.append(Trainer(twin, with_taps_of(trainers[0].rule, rule), task_of(case), {"name": "sgd", "lr": 0.0}))
    for trainer in trainers:
        trainer.step(batch)
    for key, p in net.named_parameters():
        other = twin.get_parameter(key).grad
        assert (p.grad is None) == (other is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["backprop", "fa", "dfa", "mono_forward"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls(name, rule):
    case = CASES[name]
    if reason(name, rule):
        pytest.skip("the rule refuses this net")
    if (name, rule) == ("transformer", "fa"):
        pytest.skip("with a tied embedding the loss rises under fa, see docs/rules/fa.md")
    torch.manual_seed(0)
    net, batch = case.make(), Batch(case.x(32), case.y(32))
    trainer = Trainer(net, rule, task_of(case), {"name": "adam", "lr": 0.005})
    losses = [float(trainer.step(batch)["loss"]) for _ in range(100)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), losses[::10]
