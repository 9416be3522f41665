"""Solvers of dz/dt = v(z, t) from t = 0 to 1: Euler and Heun of this package, and the solvers of torchdiffeq.

Chen 2018, torchdiffeq, https://github.com/rtqichen/torchdiffeq. Each solver takes a grid of times and returns z at each
of them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""v(z [B, E], t 0-d) -> [B, E]."""
Solver = Literal["euler", "heun", "midpoint", "rk4", "dopri5", "bosh3", "dopri8", "adaptive_heun"]
SOLVERS: tuple[str, ...] = get_args(Solver)
# Relative and absolute error that adaptive solvers allow; they choose their own steps between the times of the grid.
_TOLERANCE = 1e-4


def solve(field: Field, z: Tensor, steps: int, solver: Solver = "euler") -> Tensor:
    """Solve dz/dt = field(z, t) from t = 0 to 1.

    Args:
        field: v(z, t).
        z: [B, E], the start at t = 0.
        steps: the number of steps of equal length.
        solver: a name in SOLVERS. All but "euler" and "heun" need the package torchdiffeq.

    Returns:
        z at the times 0, 1/steps, ..., 1, as [steps + 1, B, E].
    """
    times = torch.linspace(0, 1, steps + 1, device=z.device, dtype=z.dtype)
    if solver not in ("euler", "heun"):
        # Imported here, because the package is optional and only these solvers need it.
        from torchdiffeq import odeint

        return odeint(lambda t, z: field(z, t), z, times, method=solver, rtol=_TOLERANCE, atol=_TOLERANCE)  # type: ignore[no-any-return]
    path = [z]
    for now, then in pairwise(times):
        length = then - now
        slope = field(z, now)
        if solver == "heun":
            # The mean of the slopes at both ends of an Euler step: an error of order length^2 in place of length.
            slope = (slope + field(z + length * slope, then)) / 2
        z = z + length * slope
        path.append(z)
    return torch.stack(path)
