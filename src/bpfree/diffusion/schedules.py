"""Noise schedules of the variance-preserving path q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t), t = 0..T.

abar_t = prod_{s >= t} alpha_s rises with t: z_0 is noise and z_T almost the label's embedding.
"""

import math

import torch
from torch import Tensor

from bpfree.errors import UserError


class CosineSchedule:
    """abar_t = cos^2(pi/2 (1 - t/T + s)/(1 + s)), Nichol & Dhariwal 2021 with time reversed; abar_0 = 0.

    Args:
        steps: T.
        abar_max: abar_T is clipped to it, which bounds SNR_T = abar_T/(1 - abar_T).

    Attributes:
        abar: [T+1], float64.
        snr: [T+1], abar/(1 - abar).
        dsnr: [T+1], SNR_t - SNR_{t-1} > 0; entry 0 is SNR_0 = 0.

    Raises:
        UserError: abar would not rise up to T.
    """

    OFFSET = 0.008  # s, of Nichol & Dhariwal

    def __init__(self, steps: int, abar_max: float = 0.999) -> None:
        if steps < 1:
            raise UserError(f"steps: found {steps}, allowed: at least 1")
        remaining = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = (math.pi / 2 * (remaining + self.OFFSET) / (1 + self.OFFSET)).cos().square()
        abar[0] = 0.0
        abar[-1] = abar[-1].clamp(max=abar_max)
        if not float(abar[-2]) < abar_max < 1:
            raise UserError(
                f"abar_max: found {abar_max}, allowed: a number below 1 and above {float(abar[-2]):.4f}, which abar "
                f"has reached one step before the last of {steps}"
            )
        self.steps = steps
        self.abar = abar
        self.snr = abar / (1 - abar)
        self.dsnr = self.snr.diff(prepend=abar.new_zeros(1))

    def step(self, t: int) -> tuple[float, float, float]:
        """a, b and c of Eq. 3: z_t = a u^ + b z_{t-1} + sqrt(c) eps, the exact Bayes posterior given u_y = u^."""
        before, now = float(self.abar[t - 1]), float(self.abar[t])
        alpha = before / now  # alpha_{t-1}
        a = now**0.5 * (1 - alpha) / (1 - before)
        b = alpha**0.5 * (1 - now) / (1 - before)
        c = (1 - now) * (1 - alpha) / (1 - before)
        return a, b, c

    def posterior(self, t: int, u: Tensor, eps: Tensor) -> Tensor:
        """z_t ~ q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t), [B, E] (Eq. 6)."""
        abar = float(self.abar[t])
        noisy: Tensor = u * abar**0.5 + eps * (1 - abar) ** 0.5
        return noisy

    def kl(self, u: Tensor) -> Tensor:
        """KL(q(z_0|y) || N(0, I)), 0-d, the mean over u [B, E]; it is 0 with abar_0 = 0."""
        abar, dim = float(self.abar[0]), u.shape[1]
        return 0.5 * (abar * (u.square().sum(1).mean() - dim) - dim * math.log(1 - abar))
