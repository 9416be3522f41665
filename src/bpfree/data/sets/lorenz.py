"""Windows of the Lorenz system, generated: no network, the same values everywhere.

Lorenz 1963, "Deterministic Nonperiodic Flow", https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2

    dx/dt = 10 (y - x),    dy/dt = x (28 - z) - y,    dz/dt = x y - 8/3 z

integrated by the classical Runge-Kutta method of fourth order in float64. The largest Lyapunov exponent is 0.9056
(Sprott 2003, "Chaos and Time-Series Analysis", Oxford), so errors grow e-fold in 1/0.9056 units of time: the Lyapunov
time, in which predictions are judged.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bpfree.data.dataset import Dataset, Split
from bpfree.errors import UserError, check_choice, check_positive
from bpfree.noise import Noise

LYAPUNOV = 0.9056  # the largest exponent, per unit of time
_SETTLING = 10.0  # units of time until a random start has come to the attractor


def lorenz(
    data_dir: Path,
    *,
    windows: int = 512,
    test_windows: int = 256,
    steps: int = 100,
    dt: float = 0.05,
    substeps: int = 10,
    noise: float = 0.0,
    observe: Literal["xyz", "x"] = "xyz",
    key: int = 0,
) -> Dataset:
    """Windows [steps, 3] of the Lorenz system, and for each step the next values; every window has a start of its own.

    Values are standardised by mean and spread of the training windows, component by component.

    Args:
        data_dir: not used.
        windows: for training and validation.
        test_windows: for the final evaluation.
        steps: T of a window.
        dt: time between two steps; a Lyapunov time is 1.10.
        substeps: of the integration between two steps.
        noise: standard deviation of the measurements of training windows, as a part of the spread; the test is clean.
        observe: "xyz", or "x" alone, which leaves the rest to the memory of the net.
        key: of the random starts and of the noise.
    """
    for name, value in (("windows", windows), ("test_windows", test_windows), ("steps", steps), ("dt", dt)):
        check_positive(f"data.{name}", value)
    check_positive("data.substeps", substeps)
    check_choice("data.observe", observe, ("xyz", "x"))
    if noise < 0:
        raise UserError(f"data.noise: found {noise}, allowed: 0 or more")
    starts = Noise(key).fold("lorenz")
    train = trajectories(starts.fold("train"), windows, steps + 1, dt, substeps)
    test = trajectories(starts.fold("test"), test_windows, steps + 1, dt, substeps)
    mean, std = train.mean((0, 1)), train.std((0, 1))
    train, test = (train - mean) / std, (test - mean) / std
    train = train + noise * starts.fold("noise").randn(*train.shape, dtype=train.dtype)
    kept = len(observe)
    return Dataset("lorenz", _windows(train[..., :kept]), _windows(test[..., :kept]), 0, time_step=LYAPUNOV * dt)


def velocity(state: Tensor) -> Tensor:
    """The right-hand side, of states [..., 3]."""
    x, y, z = state.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


def runge_kutta(field: Callable[[Tensor], Tensor], state: Tensor, h: float, steps: int) -> Tensor:
    """The state after so many steps of length h, by the classical method: its error falls with h^4."""
    for _ in range(steps):
        k1 = field(state)
        k2 = field(state + h / 2 * k1)
        k3 = field(state + h / 2 * k2)
        k4 = field(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def trajectories(starts: Noise, count: int, points: int, dt: float, substeps: int) -> Tensor:
    """Paths [count, points, 3] on the attractor, float64, dt apart, of random starts.

    Args:
        starts: their key.
        count, points: how many, and of how many points.
        dt: time between two points.
        substeps: of the integration between them.
    """
    state = starts.randn(count, 3, dtype=torch.float64) * 8 + torch.tensor([0.0, 0.0, 25.0])
    h = dt / substeps
    state = runge_kutta(velocity, state, h, round(_SETTLING / h))
    path = [state]
    for _ in range(points - 1):
        path.append(runge_kutta(velocity, path[-1], h, substeps))
    return torch.stack(path, 1)


def _windows(path: Tensor) -> Split:
    return Split(path[:, :-1].float(), path[:, 1:].float())
