"""No rule of `cheats.py` gets a certificate, and the cheats do what they say."""

from functools import cache

import pytest
import torch

import bpfree
from bpfree import Noise
from tests.lab import cheats
from tests.lab.cheats import CHEATS, TASK, tiny_batch, tiny_net, true_gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jacfwd uses it

OTHER = (  # what their gradient is instead of the true one, in the first step
    cheats.ErrorOfThePreviousBatch,
    cheats.FeedbackFollowsSometimes,
    cheats.FeedbackFollowsTheWeights,
    cheats.GradientOfThePreviousBatch,
    cheats.HookOfOptimisers,
    cheats.MovesTheWeights,
    cheats.SecondNet,
    cheats.TrainedWhenBound,
)


@cache
def certified(rule):
    made = rule()
    try:
        return bpfree.certify(tiny_net(), made, TASK, tiny_batch())
    finally:
        if isinstance(made, cheats.HookOfOptimisers):
            made.undo()


@pytest.fixture
def cheat(request):
    return request.param()


def every(classes):
    return pytest.mark.parametrize("cheat", classes, ids=lambda rule: rule.__name__, indirect=True)


@pytest.mark.parametrize("rule", CHEATS)
def test_no_cheat_gets_a_certificate(rule):
    found = certified(rule)
    assert not found.ok
    assert found.violations or found.unmeasured


@every([rule for rule in CHEATS if rule not in OTHER])
def test_the_cheats_write_the_true_gradient(cheat):
    """In a step in which they cheat, so that what is caught above is what it is meant to be."""
    net, batch = tiny_net(), tiny_batch()
    cheat.bind(net, TASK, batch)
    for _ in range(3 if isinstance(cheat, cheats.EachThirdCall) else 1):
        net.zero_grad()
        cheat.gradients(net, TASK, batch, Noise(0, 1001))
    for p, gradient in zip(net.parameters(), true_gradients(net, batch), strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


@every([cheats.FeedbackFollowsTheWeights, cheats.GradientOfThePreviousBatch])
def test_late_cheats_write_the_true_gradient_one_step_late(cheat):
    net, batch = tiny_net(), tiny_batch()
    cheat.bind(net, TASK, batch)
    cheat.gradients(net, TASK, batch, Noise(0, 0))
    net.zero_grad()
    cheat.gradients(net, TASK, batch, Noise(0, 1))
    for p, gradient in zip(net.parameters(), true_gradients(net, batch), strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "property_", "words"),
    [
        (cheats.TheLayerAbove, "transports", "fc1 reads the weights of fc2"),
        (cheats.FeedbackFollowsTheWeights, "transports", "fc1 reads the weights of fc2"),
        (
            cheats.ErrorOfThePreviousBatch,
            "waits",
            "fc1 depends on the weights of fc2, fc3, fc4 behind it in an earlier",
        ),
        (
            cheats.WeightsOfTheBinding,
            "transports",
            "fc1 reads the weights, as they were when the rule was bound, of fc2",
        ),
        (cheats.ByHand, "through", "fc1 is computed by hand through the weights of fc2"),
        (cheats.ForwardMode, "through", "is differentiated through fc1, fc2, fc3, fc4, a chain of 4"),
        (cheats.SecondNet, "hidden", "predictions change"),
        (cheats.TrainedWhenBound, "bind", "the rule changed fc1.weight"),
        (cheats.OnePart, "through", "a chain of 4, which are of fc1, fc2, fc3, fc4"),
        (cheats.EachThirdCall, "repeat", "gave different gradients"),
    ],
)
def test_the_violation_says_what_the_cheat_does(rule, property_, words):
    found = certified(rule)
    assert any(line.startswith(f"{property_}: ") and words in line for line in found.violations), found.violations


def test_what_cannot_be_told_is_no_certificate():
    found = certified(cheats.Numpy)
    assert found.violations == []
    line, memory = found.unmeasured
    assert memory == "memory: declared flat, but no module of the net ran, so no activation was seen"
    assert line.startswith(
        "transports: declared none, but nobody can tell if the gradient of fc1 reads the weights of fc2"
    )
    assert found.to_json()["measured"]["transports"] is None
    assert found.to_json()["ok"] is False


def test_the_whole_batch_is_measured():
    """With 16 samples the rule is what it says, so only the user's batch shows it."""
    assert bpfree.certify(tiny_net(), cheats.LargeBatches(), TASK, tiny_batch(16)).ok
    found = bpfree.certify(tiny_net(), cheats.LargeBatches(), TASK, tiny_batch(20))
    assert not found.ok
    assert found.to_json()["settings"][-1] == {"steps": [1001], "samples": 20}
