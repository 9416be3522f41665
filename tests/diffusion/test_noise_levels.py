"""Levels of noise: equal masses, owners, draws, and the scalings of a denoiser."""

import pytest
import torch

from bpfree import UserError
from bpfree.diffusion import NoiseLevels

LEVELS = NoiseLevels()


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_blocks_own_equal_masses_from_high_to_low(blocks):
    edges = torch.tensor(LEVELS.spaced(blocks + 1), dtype=torch.float64)
    assert (edges[0], edges[-1]) == (LEVELS.sigma_max, LEVELS.sigma_min)
    mass = torch.special.ndtr((edges.log() - LEVELS.mean) / LEVELS.std)
    torch.testing.assert_close(-mass.diff(), (mass[0] - mass[-1]).expand(blocks) / blocks)


def test_each_level_has_one_owner():
    edges = LEVELS.spaced(4)
    assert [LEVELS.owner(level, 3) for level in (1e9, 80.0, edges[1], edges[1] * 0.999, edges[2], 0.002, 1e-9)] == [
        *(1, 1, 1, 2, 2, 3, 3)
    ]
    assert LEVELS.spaced(1) == [80.0]
    assert [LEVELS.owner(level, 3) for level in LEVELS.spaced(3)] == [1, 2, 3], "inference runs each block once"


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_draws_from_its_own_range_and_the_overlap(block):
    edges = LEVELS.spaced(4)[block - 1 : block + 1]
    high, low = (torch.tensor(edge, dtype=torch.float64).log() for edge in edges)
    more = LEVELS.overlap * (high - low)
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    drawn = LEVELS.draw(block, 3, uniform).log()
    assert bool((drawn.diff() > 0).all())
    expected_low = low if block == 3 else low - more
    expected_high = high if block == 1 else high + more
    torch.testing.assert_close(drawn[0], expected_low)
    assert float(drawn[-1]) <= float(expected_high) + 1e-12
    own = NoiseLevels(overlap=0.0).draw(block, 3, uniform)
    assert {LEVELS.owner(float(level), 3) for level in own[1:]} == {block}


def test_draws_follow_the_distribution():
    drawn = LEVELS.draw(1, 1, (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).log()
    assert float(drawn.mean()) == pytest.approx(LEVELS.mean, abs=1e-3)
    assert float(drawn.std()) == pytest.approx(LEVELS.std, rel=2e-3)


def test_the_scalings_keep_the_variance():
    """Karras et al. 2022, Appendix B.6: the input has variance 1, and so has what F is to predict."""
    sigma = torch.tensor([0.002, 0.3, 5.0, 80.0], dtype=torch.float64)
    c, s2 = LEVELS.scalings(sigma), LEVELS.data**2
    torch.testing.assert_close(c.into.square() * (s2 + sigma.square()), torch.ones(4, dtype=torch.float64))
    target = ((1 - c.skip).square() * s2 + (c.skip * sigma).square()) / c.out.square()
    torch.testing.assert_close(target, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(LEVELS.weight(sigma), 1 / c.out.square())
    torch.testing.assert_close(c.noise, sigma.log() / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 0.0}, "noise.sigma_min: found 0.0"),
        ({"sigma_max": 1e-3}, "noise.sigma_max: found 0.001, allowed: above noise.sigma_min"),
        ({"overlap": -0.1}, "noise.overlap: found -0.1"),
        ({"std": 0.0}, "noise.std: found 0.0"),
    ],
)
def test_levels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        NoiseLevels(**options)
