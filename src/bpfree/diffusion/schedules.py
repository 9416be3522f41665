"""Noise schedules of the variance-preserving path q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t), t from 0 to 1.

abar rises with t: z_0 is noise and z_1 almost the label's embedding. With gamma = -log SNR, which falls,

    abar = sigmoid(-gamma),    SNR = abar/(1 - abar) = exp(-gamma),    dSNR/dt = -gamma' exp(-gamma) > 0

`Levels` are the T + 1 steps of a schedule at which the blocks of a discrete rule work.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError
from bpfree.noise import Noise

_START = Noise().fold("schedule")
ScheduleName = Literal["cosine", "linear", "learned"]


class Schedule(nn.Module, ABC):
    """How abar rises over t in [0, 1]. Times and values are tensors of any one shape."""

    @abstractmethod
    def abar(self, t: Tensor) -> Tensor:
        """In [0, 1), strictly rising."""

    @abstractmethod
    def dabar(self, t: Tensor) -> Tensor:
        """The derivative of abar in t, positive."""

    def snr(self, t: Tensor) -> Tensor:
        """Abar / (1 - abar)."""
        abar = self.abar(t)
        return abar / (1 - abar)

    def dsnr(self, t: Tensor) -> Tensor:
        """The derivative of SNR in t, positive."""
        return self.dabar(t) / (1 - self.abar(t)).square()

    def gamma(self, t: Tensor) -> Tensor:
        """-log SNR, falling; infinite where abar is 0."""
        return -self.snr(t).log()

    def dgamma(self, t: Tensor) -> Tensor:
        """The derivative of gamma in t, negative."""
        abar = self.abar(t)
        return -self.dabar(t) / (abar * (1 - abar))

    def levels(self, steps: int) -> "Levels":
        """Abar at t = 0, 1/T, ..., 1.

        Args:
            steps: T.
        """
        like = next(self.parameters(), torch.empty(0, dtype=torch.float64))
        with torch.no_grad():
            times = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
            return Levels(self.abar(times).double().cpu())  # they are read one by one, as numbers


class CosineSchedule(Schedule):
    """abar(t) = cos^2 of an angle that falls evenly (Nichol & Dhariwal 2021, with time reversed).

    Where we differ: the angle runs between the ends that abar is to have, instead of being offset at one end and abar
    clipped at the other; with a clip abar would not rise at the end.

    Args:
        abar_min: abar(0), in [0, 1).
        abar_max: abar(1), above abar_min and below 1; it bounds SNR.
    """

    def __init__(self, abar_min: float = 0.0, abar_max: float = 0.999) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        self.first, self.last = math.acos(abar_min**0.5), math.acos(abar_max**0.5)

    def _angle(self, t: Tensor) -> Tensor:
        return self.first + (self.last - self.first) * t

    def abar(self, t: Tensor) -> Tensor:
        """See the class; exactly 0 where the angle is a right one."""
        angle = self._angle(t)
        return torch.where(angle < math.pi / 2, angle.cos().square(), 0.0)

    def dabar(self, t: Tensor) -> Tensor:
        """-sin(2 angle) angle'."""
        return (2 * self._angle(t)).sin() * (self.first - self.last)


class LinearSchedule(Schedule):
    """abar(t) rises evenly from abar_min to abar_max: so does the variance of the noise fall."""

    def __init__(self, abar_min: float = 0.0, abar_max: float = 0.999) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        self.abar_min, self.abar_max = abar_min, abar_max

    def abar(self, t: Tensor) -> Tensor:
        """See the class."""
        return self.abar_min + (self.abar_max - self.abar_min) * t

    def dabar(self, t: Tensor) -> Tensor:
        """Constant."""
        return torch.full_like(t, self.abar_max - self.abar_min)


class LearnedSchedule(Schedule):
    """gamma is learned (NoProp, App. B; Kingma et al. 2021, https://arxiv.org/abs/2107.00630, App. H).

        gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - g(t)),    g(t) = (f(t) - f(0)) / (f(1) - f(0))
        f(t) = l1(t) + l3(sigmoid(l2(l1(t))))

    The weights of l1, l2 and l3 are the softplus of their parameters, so f rises for any of their values. gamma_0 and
    gamma_1 are learned; they start at the given ends.

    Args:
        abar_min, abar_max: abar at t = 0 and 1 before training, in (0, 1).
        width: of the hidden layer.
    """

    def __init__(self, abar_min: float = 1e-3, abar_max: float = 0.999, width: int = 64) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        if abar_min == 0:
            raise UserError("abar_min: found 0, allowed with a learned schedule: above 0, such as 0.001")
        last, first = (-math.log(abar / (1 - abar)) for abar in (abar_max, abar_min))
        self.gamma_0 = nn.Parameter(torch.tensor(last))  # at t = 1
        self.log_span = nn.Parameter(torch.tensor(math.log(first - last)))  # of gamma_1 - gamma_0
        self.l1 = nn.Parameter(torch.tensor(0.5))
        self.l2 = nn.Parameter(_START.fold("l2").randn(width))
        self.bias = nn.Parameter(_START.fold("bias").randn(width))
        self.l3 = nn.Parameter(torch.full((width,), -math.log(width)))

    def abar(self, t: Tensor) -> Tensor:
        """sigmoid(-gamma)."""
        return (-self.gamma(t)).sigmoid()

    def dabar(self, t: Tensor) -> Tensor:
        """-gamma' abar (1 - abar)."""
        abar = self.abar(t)
        return -self.dgamma(t) * abar * (1 - abar)

    def snr(self, t: Tensor) -> Tensor:
        """exp(-gamma)."""
        return (-self.gamma(t)).exp()

    def dsnr(self, t: Tensor) -> Tensor:
        """-gamma' exp(-gamma)."""
        return -self.dgamma(t) * self.snr(t)

    def gamma(self, t: Tensor) -> Tensor:
        """See the class."""
        ends = self._rising(torch.stack([torch.zeros_like(self.gamma_0), torch.ones_like(self.gamma_0)]))
        risen = (self._rising(t) - ends[0]) / (ends[1] - ends[0])
        return self.gamma_0 + self.log_span.exp() * (1 - risen)

    def dgamma(self, t: Tensor) -> Tensor:
        """In closed form."""
        ends = self._rising(torch.stack([torch.zeros_like(self.gamma_0), torch.ones_like(self.gamma_0)]))
        l1, l2, l3 = (F.softplus(w) for w in (self.l1, self.l2, self.l3))
        hidden = (l2 * (l1 * t).unsqueeze(-1) + self.bias).sigmoid()
        slope = l1 + (hidden * (1 - hidden)) @ (l3 * l2) * l1
        return -self.log_span.exp() * slope / (ends[1] - ends[0])

    def _rising(self, t: Tensor) -> Tensor:
        """f(t)."""
        l1, l2, l3 = (F.softplus(w) for w in (self.l1, self.l2, self.l3))
        first = l1 * t
        return first + (l2 * first.unsqueeze(-1) + self.bias).sigmoid() @ l3


class Levels:
    """The noise levels of T blocks: block t sees z_{t-1} and makes z_t.

    Attributes:
        abar: [T + 1], float64, rising.
        snr: [T + 1], abar/(1 - abar).
        dsnr: [T], SNR_t - SNR_{t-1} > 0 for t = 1..T.
    """

    def __init__(self, abar: Tensor) -> None:
        self.abar = abar
        self.snr = abar / (1 - abar)
        self.dsnr = self.snr.diff()

    @property
    def steps(self) -> int:
        """The number of diffusion steps, T."""
        return len(self.dsnr)

    def step(self, t: int) -> tuple[float, float, float]:
        """a, b and c of Eq. 3: z_t = a u^ + b z_{t-1} + sqrt(c) eps, the exact Bayes posterior given u_y = u^."""
        before, now = float(self.abar[t - 1]), float(self.abar[t])
        alpha = before / now  # alpha_{t-1}
        a = now**0.5 * (1 - alpha) / (1 - before)
        b = alpha**0.5 * (1 - now) / (1 - before)
        c = (1 - now) * (1 - alpha) / (1 - before)
        return a, b, c

    def posterior(self, t: int, u: Tensor, eps: Tensor) -> Tensor:
        """z_t ~ q(z_t|y), [B, E] (Eq. 6)."""
        abar = float(self.abar[t])
        noisy: Tensor = u * abar**0.5 + eps * (1 - abar) ** 0.5
        return noisy


def kl(abar: Tensor | float, u: Tensor) -> Tensor:
    """KL(q(z_0|y) || N(0, I)), 0-d: 1/2 [abar_0 (|u|^2 - E) - E log(1 - abar_0)], the mean over u [B, E]."""
    abar = torch.as_tensor(abar, dtype=u.dtype, device=u.device)
    dim = u.shape[1]
    return 0.5 * (abar * (u.square().sum(1).mean() - dim) - dim * torch.log1p(-abar))


def _check_ends(abar_min: float, abar_max: float) -> None:
    if not 0 <= abar_min < abar_max < 1:
        raise UserError(
            f"abar_min, abar_max: found {abar_min} and {abar_max}, allowed: 0 <= abar_min < abar_max < 1, such as 0 "
            "and 0.999"
        )


SCHEDULES: dict[str, type[CosineSchedule] | type[LinearSchedule] | type[LearnedSchedule]] = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "learned": LearnedSchedule,
}
