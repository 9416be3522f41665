"""The order of samples, and weights as repetition."""

import numpy as np
import pytest
import torch

from bpfree.noise import Noise
from bpfree.sklearn.samples import arrange, draw


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_arranged_samples_depend_on_the_rows_as_a_set(dtype, shape):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 3, (40, *shape)).astype(dtype).reshape(40, *shape), generator.integers(0, 2, 40)
    weights = generator.integers(1, 4, 40).astype(float)
    rows, order = np.arange(40).repeat(weights.astype(int)), generator.permutation(40)
    several = [
        arrange(x, y, weights),
        arrange(x[order], y[order], weights[order]),
        arrange(x[rows], y[rows], np.ones(len(rows))),
    ]
    for other in several[1:]:
        assert (other.x == several[0].x).all()
        assert (other.y == several[0].y).all()
        assert torch.equal(other.origin, several[0].origin)
    # Copies are found: two rows have one number where samples and labels are equal.
    first = several[0]
    flat = np.column_stack([first.x.reshape(len(first.x), -1), first.y])
    same = (flat[:, None] == flat[None]).all(2)
    assert (same == (first.origin[:, None] == first.origin[None]).numpy()).all()


def test_fractions_and_large_weights_are_drawn_and_equal_fractions_are_not():
    x, y = np.arange(4.0)[:, None], np.zeros(4, int)
    assert sorted(arrange(x, y, np.array([0.5, 1, 1, 1])).weights.tolist()) == [0.5, 1, 1, 1]
    assert sorted(arrange(x, y, np.array([1, 1, 1, 1000.0])).weights.tolist()) == [1, 1, 1, 1000]
    equal = arrange(x, y, np.full(4, 0.7))
    assert equal.weights is None
    assert equal.origin is None
    assert len(equal.x) == 4


def test_draws_are_in_proportion_and_never_off_by_more_than_one():
    weights = torch.tensor([0.1, 3.0, 1.0, 0.4, 2.2], dtype=torch.float64)
    expected = weights / weights.sum() * 5
    counts = torch.stack([torch.bincount(draw(weights, Noise(0, i)), minlength=5) for i in range(2000)]).double()
    assert (counts.sum(1) == 5).all()
    assert ((counts - expected).abs() < 1).all()
    assert torch.allclose(counts.mean(0), expected, atol=0.05)


def test_equal_weights_draw_each_sample_once():
    weights = torch.full((1000,), 0.3, dtype=torch.float64)
    assert all(torch.equal(draw(weights, Noise(i)), torch.arange(1000)) for i in range(50))
