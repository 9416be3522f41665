"""A step of a rule can be captured: it asks the host neither for a generator nor for the number of the step."""

import pytest
import torch

from bpfree import BlackBoxRule
from bpfree.diffusion import DiffusionRule
from bpfree.noise import Clock, StepNoise, counting_everywhere
from bpfree.rules import RULES, ForwardGradient
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, gradients, net_for, same, zero_grad

OTHERS = (BlackBoxRule, DiffusionRule, ForwardGradient)  # they draw perturbations in their own ways
NAMES = [name for name, kind in RULES.items() if not issubclass(kind, OTHERS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_can_be_captured(name):
    net = net_for(name, dtype=torch.float32)
    batch = Batch(torch.randn(16, *IN_SHAPE), torch.arange(16) % 10)
    rule, clock, written = bound(RULES[name](), net, batch), Clock(torch.device("cpu")), []
    with counting_everywhere():
        for step, hidden in ((3, False), (3, True), (4, True)):
            zero_grad(net, rule)
            clock.set(step)
            clock.hidden = hidden
            rule.gradients(net, TASK, batch, StepNoise(0, clock=clock))
            written.append(gradients(net, rule))
    assert same(written[0], written[1])
    assert not same(written[1], written[2])
