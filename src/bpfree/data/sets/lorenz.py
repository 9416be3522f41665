"""Generate windows of the Lorenz system: without network, and with the same values on every machine.

Lorenz 1963, "Deterministic Nonperiodic Flow", https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2

    dx/dt = 10 (y - x),    dy/dt = x (28 - z) - y,    dz/dt = x y - 8/3 z

The classical Runge-Kutta method of fourth order integrates these equations in float64. The largest Lyapunov exponent is
0.9056 (Sprott 2003, "Chaos and Time-Series Analysis", Oxford). So errors grow by a factor of e in 1/0.9056 units of
time. This is the Lyapunov time, the unit in which predictions are judged.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bpfree.data.dataset import Dataset
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError, check_choice, check_positive
from bpfree.noise import Noise

LYAPUNOV = 0.9056  # the largest exponent, per unit of time
_SETTLING = 10.0  # units of time after which a random start has reached the attractor


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
    """Windows [steps, 3] of the Lorenz system, and for each step the next values. Each window has its own start.

    Each component is standardised by its mean and standard deviation in the training windows.

    Args:
        data_dir: not used.
        windows: the number of windows for training and validation.
        test_windows: the number of windows for the final evaluation.
        steps: T, the number of steps in a window.
        dt: the time between two steps; the Lyapunov time is 1.10.
        substeps: the number of steps of the integration between two steps of a window.
        noise: the standard deviation of noise on training windows, relative to that of the values. Test windows have
            no noise.
        observe: the components that the net sees: "xyz", or "x" alone. Then the net must remember to know the others.
        key: the key of the random starts and of the noise.

    Raises:
        UserError: an option is not above 0, the noise is below 0, or `observe` has another value.
    """
    for name, value in (("windows", windows), ("test_windows", test_windows), ("steps", steps), ("dt", dt)):
        check_positive(f"data.{name}", value)
    check_positive("data.substeps", substeps)
    check_choice("data.observe", observe, ("xyz", "x"))
    if noise < 0:
        raise UserError(f"data.noise: found {noise}, allowed: 0 or more")
    starts = Noise(key).fold("lorenz")
    # One point more than steps, because the label of each step is the next point.
    train = trajectories(starts.fold("train"), windows, steps + 1, dt, substeps)
    test = trajectories(starts.fold("test"), test_windows, steps + 1, dt, substeps)
    mean, std = train.mean((0, 1)), train.std((0, 1))
    train, test = (train - mean) / std, (test - mean) / std
    # The values are standardised here, so `noise` is relative to their standard deviation.
    train = train + noise * starts.fold("noise").randn(*train.shape, dtype=train.dtype)
    kept = len(observe)
    return Dataset(
        "lorenz", _windows(train[..., :kept]), _windows(test[..., :kept]), Labels(0, time_step=LYAPUNOV * dt)
    )


def velocity(state: Tensor) -> Tensor:
    """Return the time derivative [..., 3] of states [..., 3]: the right-hand side of the equations."""
    x, y, z = state.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


def runge_kutta(field: Callable[[Tensor], Tensor], state: Tensor, h: float, steps: int) -> Tensor:
    """Return the state after some steps of the classical Runge-Kutta method, whose error falls with h^4.

    Args:
        field: gives the time derivative of a state.
        state: the start, of any shape.
        h: the length of a step, in units of time.
        steps: the number of steps.
    """
    for _ in range(steps):
        k1 = field(state)
        k2 = field(state + h / 2 * k1)
        k3 = field(state + h / 2 * k2)
        k4 = field(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def trajectories(starts: Noise, count: int, points: int, dt: float, substeps: int) -> Tensor:
    """Return paths on the attractor from random starts, float64 [count, points, 3].

    Args:
        starts: the key of the random starts.
        count: the number of paths.
        points: the number of points of a path.
        dt: the time between two points.
        substeps: the number of steps of the integration between two points.
    """
    # The centre of the attractor, roughly. From there every start reaches the attractor within the time `_SETTLING`.
    state = starts.randn(count, 3, dtype=torch.float64) * 8 + torch.tensor([0.0, 0.0, 25.0])
    h = dt / substeps
    state = runge_kutta(velocity, state, h, round(_SETTLING / h))
    path = [state]
    for _ in range(points - 1):
        path.append(runge_kutta(velocity, path[-1], h, substeps))
    return torch.stack(path, 1)  # [count, points, 3]


def _windows(path: Tensor) -> Split:
    """Return paths [N, T + 1, D] as samples [N, T, D] whose labels are the next values."""
    # float32 only at the end: within the integration its rounding errors would grow by a factor of e in each Lyapunov
    # time.
    return Split(path[:, :-1].float(), path[:, 1:].float())
