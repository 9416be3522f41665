"""Schedules and levels against their equations."""

import math

import pytest
import torch

from bpfree import Noise, UserError
from bpfree.diffusion import SCHEDULES, CosineSchedule, LearnedSchedule, Levels
from bpfree.diffusion.schedules import kl

TIMES = torch.linspace(0, 1, 201, dtype=torch.float64)


def schedules():
    for name, kind in SCHEDULES.items():
        yield pytest.param(kind(0.001, 0.999).double(), id=name)
    for seed in range(4):  # gamma is monotone whatever the weights
        wild = LearnedSchedule().double()
        with torch.no_grad():
            for p in wild.parameters():
                p.copy_(3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        yield pytest.param(wild, id=f"learned-wild-{seed}")


@pytest.mark.parametrize("schedule", list(schedules()))
def test_abar_and_snr_rise_and_gamma_falls(schedule):
    abar = schedule.abar(TIMES)
    assert bool(((abar > 0) & (abar < 1)).all())
    assert bool((abar.diff() > 0).all())
    assert bool((schedule.snr(TIMES).diff() > 0).all())
    assert bool((schedule.gamma(TIMES).diff() < 0).all())
    assert bool((schedule.dsnr(TIMES) > 0).all())
    assert bool((schedule.dgamma(TIMES) < 0).all())


@pytest.mark.parametrize("schedule", list(schedules()))
@pytest.mark.parametrize("name", ["abar", "snr", "gamma"])
def test_derivatives_are_those_of_autograd(schedule, name):
    times = TIMES[5:-5].clone().requires_grad_()
    (expected,) = torch.autograd.grad(getattr(schedule, name)(times).sum(), times)
    torch.testing.assert_close(getattr(schedule, f"d{name}")(times), expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_has_the_ends_that_are_asked_for(name):
    schedule = SCHEDULES[name](0.1, 0.95).double()
    ends = schedule.abar(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.1, 0.95], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.snr(TIMES), (-schedule.gamma(TIMES)).exp())


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
def test_levels_start_at_pure_noise_and_rise(steps):
    levels = CosineSchedule().levels(steps)
    assert levels.abar.shape == (steps + 1,)
    assert levels.steps == steps
    assert float(levels.abar[0]) == 0
    assert float(levels.abar[-1]) == pytest.approx(0.999)
    assert bool((levels.dsnr > 0).all())
    torch.testing.assert_close(levels.dsnr.cumsum(0), levels.abar[1:] / (1 - levels.abar[1:]))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_levels(name):
    levels = SCHEDULES[name](0.01, 0.99).levels(7)
    assert levels.abar.dtype == torch.float64
    assert float(levels.abar[0]) == pytest.approx(0.01, rel=1e-4)
    assert float(levels.abar[-1]) == pytest.approx(0.99, rel=1e-4)
    assert bool((levels.dsnr > 0).all())


@pytest.mark.parametrize("t", range(1, 11))
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_eq_3_is_the_exact_bayes_posterior_step(name, t):
    """q(z_t | z_{t-1}, u): prior N(sqrt(abar_t) u, 1-abar_t), likelihood z_{t-1} ~ N(sqrt(alpha) z_t, 1-alpha)."""
    levels = SCHEDULES[name]().levels(10)
    before, now = float(levels.abar[t - 1]), float(levels.abar[t])
    alpha = before / now
    precision = 1 / (1 - now) + alpha / (1 - alpha)
    a, b, c = levels.step(t)
    assert c == pytest.approx(1 / precision, rel=1e-9)
    assert a == pytest.approx(math.sqrt(now) / (1 - now) / precision, rel=1e-9)
    assert b == pytest.approx(math.sqrt(alpha) / (1 - alpha) / precision, rel=1e-9)


def test_posterior_moments_by_sampling():
    levels = CosineSchedule().levels(10)
    u, eps = torch.ones(400_000, 1, dtype=torch.float64), Noise().randn(400_000, 1, dtype=torch.float64)
    for t in (0, 3, 10):
        z, abar = levels.posterior(t, u, eps), float(levels.abar[t])
        assert float(z.mean()) == pytest.approx(math.sqrt(abar), abs=5e-3)
        assert float(z.var()) == pytest.approx(1 - abar, abs=5e-3)


def test_the_chain_of_eq_3_has_the_posteriors_marginals():
    """With u^ = u, stepping from noise by Eq. 3 gives z_T ~ q(z_T|y): the noise level is not off by one."""
    levels = CosineSchedule().levels(10)
    z = Noise().fold(0).randn(200_000, dtype=torch.float64)
    for t in range(1, 11):
        a, b, c = levels.step(t)
        z = a * 1.0 + b * z + c**0.5 * Noise().fold(t).randn(200_000, dtype=torch.float64)
        assert float(z.mean()) == pytest.approx(float(levels.abar[t]) ** 0.5, abs=1e-2)
        assert float(z.var()) == pytest.approx(1 - float(levels.abar[t]), abs=1e-2)


def test_kl_is_that_of_two_gaussians():
    u = Noise().randn(5, 7, dtype=torch.float64)
    q = torch.distributions.Normal(0.3**0.5 * u, (1 - 0.3) ** 0.5)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl(0.3, u), expected)
    assert float(kl(0.0, u)) == 0


def test_levels_of_a_reversed_schedule_would_have_negative_weights():
    """The mistake of a family of repositories: blocks would then maximise their error."""
    assert bool((Levels(CosineSchedule().levels(10).abar.flip(0)).dsnr < 0).all())


@pytest.mark.parametrize("ends", [(0.5, 0.4), (-0.1, 0.9), (0.0, 1.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_that_cannot_be_are_refused(name, ends):
    with pytest.raises(UserError, match="abar_min, abar_max: found .* allowed: 0 <= abar_min < abar_max < 1"):
        SCHEDULES[name](*ends)
