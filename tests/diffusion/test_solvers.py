"""Solvers on an equation with a known solution."""

import math

import pytest
import torch

from bpfree.diffusion import SOLVERS, solve

START = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_follows_the_exponential(solver):
    """dz/dt = -z: z(t) = z(0) exp(-t) at every time of the grid."""
    path = solve(lambda z, t: -z, START, 20, solver)
    assert path.shape == (21, 2, 2)
    exact = torch.exp(-torch.linspace(0, 1, 21, dtype=torch.float64)).view(-1, 1, 1) * START
    tolerance = {"euler": 0.1, "heun": 1e-3, "midpoint": 1e-3, "rk4": 1e-6, "dopri5": 1e-3}.get(solver, 2e-2)
    assert float((path - exact).abs().max()) < tolerance  # torchdiffeq interpolates between the steps that it chooses


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order):
    errors = [
        float((solve(lambda z, t: -z * (1 + t), START, steps, solver)[-1] - START * math.exp(-1.5)).abs().max())
        for steps in (8, 16)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_heun_is_the_mean_of_two_slopes():
    one = solve(lambda z, t: z * (1 + t), START, 1, "heun")[-1]
    torch.testing.assert_close(one, START + (START + 2 * (START + START)) / 2)
