"""Populations as on a device: noise from keys, any number of members at once, and nothing that waits for the host."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree import BlackBoxRule, Noise
from bpfree.noise import Clock, StepNoise, counting_everywhere
from bpfree.population import Gaussian, Generation, LowRank, MaskedGaussian, Member, Population, Rademacher
from bpfree.rules import RULES, Eggroll, ForwardGradient
from tests.helpers import TASK, bound, zero_grad
from tests.population.nets import Noisy, flat
from tests.population.test_evaluators import make, replace_x, written_out

CASES = {
    **{name: (name, {}) for name, kind in RULES.items() if issubclass(kind, BlackBoxRule)},
    "rademacher": ("es", {"perturbation": "rademacher", "mirrored": False, "shaping": "utilities"}),
    "rank 3": ("eggroll", {"rank": 3, "mirrored": False, "sigma_decay": 0.5}),
    "decay": ("recombine", {"sigma_decay": 0.5}),
    "pairs": ("spsa", {"pairs": 3}),
}
NOISE = {"gaussian": Gaussian(), "masked": MaskedGaussian(0.4), "signs": Rademacher(), "rank 3": LowRank(3)}


@pytest.fixture(autouse=True)
def counting():
    with counting_everywhere():
        yield


def rule_of(case, evaluator, **options):
    name, given = CASES[case]
    size = {"population": 10} if name != "spsa" else {}
    return RULES[name](**size, **given, evaluator=evaluator, **options)


def ticking(step=0):
    clock = Clock(torch.device("cpu"))
    clock.set(step)
    return StepNoise(0, clock=clock)


def steps_of(rule, net, batch, noise=None, steps=2):
    """Gradients of some steps, in a row."""
    bound(rule, net, batch)
    found = []
    for step in range(steps):
        zero_grad(net)
        if noise is not None:
            noise.clock.set(step)
        rule.gradients(net, TASK, batch, Noise(0, step) if noise is None else noise)
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["conv", "norm"])
def test_every_evaluator_gives_the_gradients_of_the_loop_in_chunks_of_any_size(kind, case, batch):
    expected = steps_of(rule_of(case, "loop"), make(kind, batch), batch, steps=1)
    names = ["in_place", "vmap", "auto", *(["lowrank"] if CASES[case][0] == "eggroll" else [])]
    for name in names:
        for memory in (None, 0.03):
            rule = rule_of(case, name, max_memory=memory)
            found = steps_of(rule, make(kind, batch), batch, steps=1)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))
    if memory is None:
        assert rule.metadata()["evaluator"] == names[-1]


@pytest.mark.parametrize("case", ["es", "eggroll", "snes"])
def test_gradients_are_not_rounded_under_autocast(case, batch):
    batch = replace_x(batch, torch.float32)
    net = make("conv", batch, torch.float32)
    rule = bound(rule_of(case, "loop"), net, batch)
    generation = rule.generation(list(net.parameters()), Noise(0, 0))
    weights = torch.linspace(-1, 1, 10)
    expected = generation.combine(weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(generation.combine(weights), expected, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_asks_the_host_for_nothing(case, batch):
    """After a first step, which chooses the evaluator. The step's number on the device says what the host's said."""
    expected = steps_of(rule_of(case, "auto"), make("norm", batch), batch, steps=3)
    rule, net, noise = rule_of(case, "auto"), make("norm", batch), ticking()
    found = [*steps_of(rule, net, batch, noise, steps=2)]
    noise.clock.set(2)
    noise.clock.hidden = True
    zero_grad(net)
    with pytest.MonkeyPatch.context() as patch, Waits():
        patch.setattr(torch, "tensor", refuse_lists)
        rule.gradients(net, TASK, batch, noise)
    found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Waits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def refuse_lists(values, **options):
    assert not isinstance(values, list), "copied from the host"
    return torch.as_tensor(values, **options)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", NOISE)
def test_the_noise_of_a_member_depends_on_its_key_alone(name, mirrored):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Linear(5, 2)).double()
    generation = Generation(list(net.parameters()), Member.all(140, mirrored), NOISE[name], Noise(3, 0), 0.1)
    (every,) = generation.chunks(1000)
    whole = [sample.dense()[every.places] for sample in every.samples]
    for parts in (generation.chunks(1), generation.chunks(7), generation.chunks(64), generation.blocks()):
        noise = zip(*([s.dense()[chunk.places] for s in chunk.samples] for chunk in parts), strict=True)
        assert all(torch.equal(torch.cat(part), expected) for part, expected in zip(noise, whole, strict=True))
    for i in (0, 1, 77):
        alone = generation.draw_one(generation.members[i].key)
        assert all(torch.equal(s.dense()[place], e[i]) for (s, place), e in zip(alone, whole, strict=True))
    assert not torch.equal(whole[2].flatten(1)[:, :2], whole[3])  # another parameter has other noise


@pytest.mark.parametrize("name", NOISE)
def test_what_is_combined_is_the_weighted_noise_whatever_is_drawn_at_once(name, monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Linear(5, 2)).double()
    generation = Generation(list(net.parameters()), Member.all(40, True), NOISE[name], Noise(3, 0), 0.1)
    odd = replace(generation, members=generation.members[1::3])  # keys in no regular order
    for this in (generation, odd):
        weights = torch.randn(len(this.members), dtype=torch.float64)
        (every,) = this.chunks(1000)
        signed = weights * torch.tensor(every.signs)
        expected = [torch.tensordot(signed, s.dense()[every.places], 1) for s in every.samples]
        for numbers in (2**27, 64, 1):
            monkeypatch.setattr("bpfree.population.generation._AT_ONCE", numbers)
            for found, wanted in zip(this.combine(weights), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_noise_has_the_moments_of_its_distribution():
    layer = nn.Linear(3, 2).double()
    for perturbation, variance in ((Gaussian(), 1), (MaskedGaussian(0.4), 0.4), (Rademacher(), 1), (LowRank(2), 1)):
        generation = Generation([layer.weight], Member.all(40_000, False), perturbation, Noise(3, 0))
        (every,) = generation.chunks(40_000)
        noise = every.samples[0].dense().flatten(1)
        covariance = noise.T @ noise / len(noise)
        torch.testing.assert_close(covariance, variance * torch.eye(6).to(covariance), rtol=0, atol=0.05)


def test_a_population_keeps_its_tensors_and_a_copy_does_not():
    members = Member.all(6, True)
    like = torch.zeros(())
    assert members.layout(0, 6, 1).on(like) is members.layout(0, 6, 1).on(like)
    assert members.layout(0, 6, 1).each == 2
    assert members.layout(1, 6, 1).each is None
    assert Population(members).__reduce__() == (Population, (tuple(members),))


# Nets that draw numbers in forward


def test_forward_gradients_are_slopes_in_a_captured_step_with_one_dropout_mask(batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 10)).double()
    noise, rule = ticking(), ForwardGradient(directions=3)
    bound(rule, net, batch)
    (found,) = steps_of(rule, net, batch, noise, steps=1)
    noise.clock.hidden = True
    zero_grad(net)
    rule.gradients(net, TASK, batch, noise)
    assert torch.equal(torch.cat([p.grad.flatten() for p in net.parameters()]), found)
    zero_grad(net)
    with noise.fold("dropout").global_rng():
        TASK.loss(net(batch.x), batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    (every,) = Generation(list(net.parameters()), rule.members, Gaussian(), noise).chunks(3)
    directions = torch.cat([sample.dense().flatten(1) for sample in every.samples], 1)
    torch.testing.assert_close(found, (directions @ gradient) @ directions / 3, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["input", "hidden", "dropout"])
def test_all_members_see_the_same_numbers_in_forward(kind, batch):
    def net():
        torch.manual_seed(0)
        return Noisy(kind).to(batch.x)

    expected = steps_of(Eggroll(population=6, evaluator="loop", shaping="raw"), net(), batch, ticking())
    assert float(expected.abs().max()) < 1e3  # a difference of numbers would be divided by sigma
    for evaluator in ("in_place", "vmap", "auto"):
        found = steps_of(Eggroll(population=6, evaluator=evaluator, shaping="raw"), net(), batch, ticking())
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_numbers_that_are_drawn_late_are_noticed(batch):
    torch.manual_seed(0)
    net = Noisy("none").to(batch.x)
    rules = [bound(Eggroll(population=6, evaluator=name), net, batch) for name in ("auto", "loop")]
    noise = ticking()
    zero_grad(net)
    rules[0].gradients(net, TASK, batch, noise)
    assert rules[0].metadata() == {"evaluator": "lowrank"}
    assert not noise.clock.drew
    net.kind = "hidden"
    found = []
    for rule in rules:
        zero_grad(net)
        rule.gradients(net, TASK, batch, noise)
        found.append(flat({name: p.grad for name, p in net.named_parameters()}))
    assert noise.clock.drew
    assert rules[0].metadata() != {"evaluator": "lowrank"}
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_members_are_those_of_their_weights_written_out(batch):
    net = make("conv", batch)
    trained = list(net.parameters())
    generation = Generation(trained, Member.all(6, True), LowRank(2), Noise(0, 0), torch.tensor(0.1).double())
    same = replace(generation, scale=0.1)
    assert torch.allclose(written_out(net, batch, generation), written_out(net, batch, same), rtol=1e-12)
    assert F.mse_loss(generation.combine(torch.ones(6).double())[0], torch.zeros(3, 1, 3, 3).double()) < 1e-20
