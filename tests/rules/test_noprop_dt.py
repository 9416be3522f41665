"""NoProp against its equations, and against the mistakes of public code."""

import math

import pytest
import torch
from torch import nn

from bpfree import Noise, UserError
from bpfree.diffusion import CosineSchedule
from bpfree.nets import Denoiser
from bpfree.rules import NoPropDT
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, **options):
    torch.manual_seed(0)
    net = Denoiser(IN_SHAPE, 10, blocks=4, width=16, **options).double().to(batch.x.device)
    return net, bound(NoPropDT(), net, batch)


def unit_gradients(net, rule, batch):
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    return [[p.grad.clone() for p in unit] for unit in rule.units(net)]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
def test_abar_rises_and_snr_with_it(steps):
    schedule = CosineSchedule(steps, abar_max=0.99995 if steps > 10 else 0.999)
    assert schedule.abar.shape == (steps + 1,)
    assert float(schedule.abar[0]) == 0
    assert bool((schedule.abar.diff() > 0).all())
    assert bool((schedule.dsnr[1:] > 0).all())
    torch.testing.assert_close(schedule.dsnr.cumsum(0), schedule.abar / (1 - schedule.abar))


@pytest.mark.parametrize("t", range(1, 11))
def test_eq_3_is_the_exact_bayes_posterior_step(t):
    """q(z_t | z_{t-1}, u): prior N(sqrt(abar_t) u, 1-abar_t), likelihood z_{t-1} ~ N(sqrt(alpha) z_t, 1-alpha)."""
    schedule = CosineSchedule(10)
    before, now = float(schedule.abar[t - 1]), float(schedule.abar[t])
    alpha = before / now
    precision = 1 / (1 - now) + alpha / (1 - alpha)
    a, b, c = schedule.step(t)
    assert c == pytest.approx(1 / precision, rel=1e-9)
    assert a == pytest.approx(math.sqrt(now) / (1 - now) / precision, rel=1e-9)
    assert b == pytest.approx(math.sqrt(alpha) / (1 - alpha) / precision, rel=1e-9)


def test_posterior_moments_by_sampling():
    schedule = CosineSchedule(10)
    u, eps = torch.ones(400_000, 1, dtype=torch.float64), Noise().randn(400_000, 1, dtype=torch.float64)
    for t in (0, 3, 10):
        z, abar = schedule.posterior(t, u, eps), float(schedule.abar[t])
        assert float(z.mean()) == pytest.approx(math.sqrt(abar), abs=5e-3)
        assert float(z.var()) == pytest.approx(1 - abar, abs=5e-3)


def test_the_chain_of_eq_3_has_the_posteriors_marginals():
    """With u^ = u, stepping from noise by Eq. 3 gives z_T ~ q(z_T|y): the noise level is not off by one."""
    schedule = CosineSchedule(10)
    z = Noise().fold(0).randn(200_000, dtype=torch.float64)
    for t in range(1, 11):
        a, b, c = schedule.step(t)
        z = a * 1.0 + b * z + c**0.5 * Noise().fold(t).randn(200_000, dtype=torch.float64)
        assert float(z.mean()) == pytest.approx(float(schedule.abar[t]) ** 0.5, abs=1e-2)
        assert float(z.var()) == pytest.approx(1 - float(schedule.abar[t]), abs=1e-2)


def test_kl_is_that_of_two_gaussians():
    schedule = CosineSchedule(4)
    schedule.abar[0] = 0.3  # with the cosine's abar_0 = 0 the term vanishes
    u = Noise().randn(5, 7, dtype=torch.float64)
    q = torch.distributions.Normal(0.3**0.5 * u, (1 - 0.3) ** 0.5)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(schedule.kl(u), expected)
    assert float(CosineSchedule(4).kl(u)) == 0


def test_the_loss_is_eq_8(batch):
    """The blocks' losses sum to T/2 eta E_t[dSNR |u^ - u|^2], t uniform."""
    net, rule = net_and_rule(batch)
    outputs = []
    for head in net.heads:
        head.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    u = torch.nn.functional.one_hot(batch.y, 10).double()
    terms = [float(rule.schedule.dsnr[t]) * (outputs[t - 1].softmax(1) - u).square().sum(1).mean() for t in range(1, 5)]
    expected = 4 / 2 * 0.1 * torch.stack(terms).mean()
    got = sum(v for k, v in scalars.items() if k.startswith("loss/block"))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(scalars["loss"], got + scalars["loss/readout"])


def test_block_t_sees_noise_level_t_minus_1(batch):
    net, rule = net_and_rule(batch)
    seen = []
    for head in net.heads:
        head.register_forward_hook(lambda m, args, out: seen.append(args[1]))
    rule.gradients(net, TASK, batch, Noise(0, 0))
    u = torch.nn.functional.one_hot(batch.y, 10).double()
    for t, z in enumerate(seen, start=1):
        abar = float(rule.schedule.abar[t - 1])
        assert float((z - abar**0.5 * u).var()) == pytest.approx(1 - abar, rel=0.25)
        if t > 1:
            assert float((z * u).sum(1).mean()) == pytest.approx(abar**0.5, abs=0.5 * (1 - abar) ** 0.5 + 0.05)


@pytest.mark.parametrize("changed", range(4))
def test_block_t_does_not_move_when_block_s_changes(changed, batch):
    net, rule = net_and_rule(batch)
    before = unit_gradients(net, rule, batch)
    jolt(rule.units(net)[changed])
    after = unit_gradients(net, rule, batch)
    for t, (x, y) in enumerate(zip(before, after, strict=True)):
        assert equal(x, y) == (t != changed)


def test_a_shared_trunk_is_moved_by_block_1_alone(batch):
    net, rule = net_and_rule(batch, trunk="shared")
    before = unit_gradients(net, rule, batch)
    trunk = {id(p) for p in net.trunks.parameters()}
    assert [any(id(p) in trunk for p in unit) for unit in rule.units(net)] == [True, False, False, False, False]
    for later in (1, 2, 3):
        jolt(net.heads[later].parameters())
    assert equal(before[0], unit_gradients(net, rule, batch)[0])


def test_the_cross_entropy_reaches_the_read_out_alone(batch):
    net, rule = net_and_rule(batch)
    before = unit_gradients(net, rule, batch)
    jolt(rule.readout.parameters())
    after = unit_gradients(net, rule, batch)
    assert all(equal(x, y) for x, y in zip(before[:-1], after[:-1], strict=True))
    assert not equal(before[-1], after[-1])


def test_inference_takes_the_image_alone_and_uses_every_block(batch):
    net, rule = net_and_rule(batch)
    net.eval()
    reference = rule.predict(net, batch.x)
    assert torch.equal(reference, rule.predict(net, batch.x))
    for head in net.heads:
        calls = []
        handle = head.register_forward_hook(lambda m, args, out, calls=calls: calls.append(1))
        rule.predict(net, batch.x)
        handle.remove()
        assert len(calls) == 1
        kept = [p.detach().clone() for p in head.parameters()]
        jolt(head.parameters())
        assert not torch.equal(reference, rule.predict(net, batch.x))
        with torch.no_grad():
            for p, k in zip(head.parameters(), kept, strict=True):
                p.copy_(k)


def test_stochastic_inference_repeats_and_differs_from_deterministic(batch):
    net, rule = net_and_rule(batch)
    net.eval()
    deterministic = rule.predict(net, batch.x)
    rule.inference = "stochastic"
    stochastic = rule.predict(net, batch.x)
    assert torch.equal(stochastic, rule.predict(net, batch.x))
    assert not torch.allclose(stochastic, deterministic)


def test_embeddings_are_one_hot_and_fixed(batch):
    _, rule = net_and_rule(batch)
    assert torch.equal(rule.embedding.weight, torch.eye(10).to(rule.embedding.weight))
    assert list(rule.embedding.parameters()) == []


def test_reported_accuracy_is_of_block_1_on_pure_noise(batch):
    """z_0 holds nothing of the label, so labels shuffled after the fact are at chance for an untrained net."""
    net, rule = net_and_rule(batch)
    assert float(rule.schedule.abar[0]) == 0
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    assert float(scalars["accuracy"]) < 0.6


def test_what_cannot_work_is_refused(batch):
    with pytest.raises(UserError, match=r"net: found Sequential, but NoProp needs denoising blocks"):
        NoPropDT().bind(nn.Sequential(nn.Linear(2, 2)), TASK, batch)
    with pytest.raises(UserError, match=r"embeddings of width 7, but one-hot labels have 10"):
        NoPropDT().bind(Denoiser(IN_SHAPE, 10, blocks=2, width=8, embedding_dim=7).to(batch.x), TASK, batch)
    with pytest.raises(UserError, match=r"abar_max: found 0.5, allowed: a number below 1 and above 0.9"):
        CosineSchedule(10, abar_max=0.5)
