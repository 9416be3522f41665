"""Noise schedules of the variance-preserving path q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t), t from 0 to 1.

abar is the share of the label's embedding u_y in the variance of z. It rises with t: z_0 is noise, and z_1 is almost
the embedding. With gamma = -log SNR, which falls,

    abar = sigmoid(-gamma),    SNR = abar/(1 - abar) = exp(-gamma),    dSNR/dt = -gamma' exp(-gamma) > 0

`Levels` are the T + 1 points of a schedule between which the T blocks of a discrete rule work.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.spec import OptionGroup

_START = Noise().fold("schedule")
ScheduleName = Literal["cosine", "linear", "learned"]


class Schedule(nn.Module, ABC):
    """A function abar(t) that rises over t in [0, 1].

    All methods take a tensor of times of any shape and return a tensor of that shape.
    """

    @abstractmethod
    def abar(self, t: Tensor) -> Tensor:
        """Return abar at times t, in [0, 1) and strictly rising."""

    @abstractmethod
    def dabar(self, t: Tensor) -> Tensor:
        """Return the derivative of abar in t, which is positive."""

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio abar / (1 - abar)."""
        abar = self.abar(t)
        return abar / (1 - abar)

    def dsnr(self, t: Tensor) -> Tensor:
        """Return the derivative of SNR in t, which is positive."""
        # SNR' = (abar / (1 - abar))' = abar' / (1 - abar)^2.
        return self.dabar(t) / (1 - self.abar(t)).square()

    def gamma(self, t: Tensor) -> Tensor:
        """Return -log SNR, which falls; infinite where abar is 0."""
        return -self.snr(t).log()

    def dgamma(self, t: Tensor) -> Tensor:
        """Return the derivative of gamma in t, which is negative."""
        abar = self.abar(t)
        # gamma' = (log(1 - abar) - log abar)' = -abar' / (1 - abar) - abar' / abar.
        return -self.dabar(t) / (abar * (1 - abar))

    def levels(self, steps: int) -> "Levels":
        """Return the noise levels at t = 0, 1/T, ..., 1.

        Args:
            steps: T.
        """
        # float64 on the CPU: levels are read one by one as Python numbers, and SNR near abar = 1 needs the digits.
        like = next(self.parameters(), torch.empty(0, dtype=torch.float64))
        with torch.no_grad():
            times = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
            return Levels(self.abar(times).double().cpu())


class CosineSchedule(Schedule):
    """The cosine schedule: abar(t) = cos^2 of an angle that falls evenly.

    Where we differ from the reference: the angle runs between the two ends that abar shall have. The reference shifts
    the angle at one end and clips abar at the other; with a clip, abar would not rise at the end.

    Reference: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, Eq. 17, with time reversed.

    Args:
        abar_min: abar(0), in [0, 1).
        abar_max: abar(1), above abar_min and below 1; it bounds SNR.
    """

    def __init__(self, abar_min: float = 0.0, abar_max: float = 0.999) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        self.first, self.last = math.acos(abar_min**0.5), math.acos(abar_max**0.5)  # first > last: the angle falls

    def _angle(self, t: Tensor) -> Tensor:
        return self.first + (self.last - self.first) * t

    def abar(self, t: Tensor) -> Tensor:
        """Return cos^2 of the angle at times t."""
        angle = self._angle(t)
        # cos(pi/2) rounds to 6e-17 instead of 0; then log SNR would be finite where nothing of the label is left.
        return torch.where(angle < math.pi / 2, angle.cos().square(), 0.0)

    def dabar(self, t: Tensor) -> Tensor:
        """Return the derivative -sin(2 angle) angle'."""
        return (2 * self._angle(t)).sin() * (self.first - self.last)


class LinearSchedule(Schedule):
    """The linear schedule: abar(t) rises evenly, so the variance of the noise falls evenly.

    Args:
        abar_min: abar(0), in [0, 1).
        abar_max: abar(1), above abar_min and below 1.
    """

    def __init__(self, abar_min: float = 0.0, abar_max: float = 0.999) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        self.abar_min, self.abar_max = abar_min, abar_max

    def abar(self, t: Tensor) -> Tensor:
        """Return the point between abar_min and abar_max at times t."""
        return self.abar_min + (self.abar_max - self.abar_min) * t

    def dabar(self, t: Tensor) -> Tensor:
        """Return the constant slope abar_max - abar_min."""
        return torch.full_like(t, self.abar_max - self.abar_min)


class LearnedSchedule(Schedule):
    """A learned schedule: gamma(t) is a small net that can only fall.

        gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - g(t)),    g(t) = (f(t) - f(0)) / (f(1) - f(0))
        f(t) = l1(t) + l3(sigmoid(l2(l1(t))))

    The weights of l1, l2 and l3 are the softplus of their parameters, so f rises whatever the parameters are. gamma_0
    and gamma_1 are learned too; abar_min and abar_max say where they start.

    Reference: NoProp, Appendix B; Kingma et al. 2021, https://arxiv.org/abs/2107.00630, Appendix H.

    Args:
        abar_min: abar(0) before training, in (0, 1).
        abar_max: abar(1) before training, above abar_min and below 1.
        width: the number of units of the hidden layer.

    Raises:
        UserError: abar_min is 0, where gamma would be infinite.
    """

    def __init__(self, abar_min: float = 1e-3, abar_max: float = 0.999, width: int = 64) -> None:
        super().__init__()
        _check_ends(abar_min, abar_max)
        if abar_min == 0:
            raise UserError("abar_min: found 0, allowed with a learned schedule: above 0, such as 0.001")
        last, first = (-math.log(abar / (1 - abar)) for abar in (abar_max, abar_min))
        self.gamma_0 = nn.Parameter(torch.tensor(last))  # at t = 1
        # The logarithm of gamma_1 - gamma_0 is learned, not gamma_1: so gamma_1 stays above gamma_0.
        self.log_span = nn.Parameter(torch.tensor(math.log(first - last)))
        self.l1 = nn.Parameter(torch.tensor(0.5))
        self.l2 = nn.Parameter(_START.fold("l2").randn(width))
        self.bias = nn.Parameter(_START.fold("bias").randn(width))
        # softplus(-log w) = log(1 + 1/w), about 1/w: the sum over w hidden units starts near 1, whatever their number.
        self.l3 = nn.Parameter(torch.full((width,), -math.log(width)))

    def abar(self, t: Tensor) -> Tensor:
        """Return abar = sigmoid(-gamma)."""
        return (-self.gamma(t)).sigmoid()

    def dabar(self, t: Tensor) -> Tensor:
        """Return the derivative -gamma' abar (1 - abar)."""
        abar = self.abar(t)
        return -self.dgamma(t) * abar * (1 - abar)

    def snr(self, t: Tensor) -> Tensor:
        """Return SNR = exp(-gamma)."""
        # Not abar / (1 - abar) as in the base class: near abar = 1 this has few digits in float32.
        return (-self.gamma(t)).exp()

    def dsnr(self, t: Tensor) -> Tensor:
        """Return the derivative -gamma' exp(-gamma)."""
        return -self.dgamma(t) * self.snr(t)

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma at times t, as the class says."""
        ends = self._rising(torch.stack([torch.zeros_like(self.gamma_0), torch.ones_like(self.gamma_0)]))
        # This is g(t), which is 0 at t = 0 and 1 at t = 1.
        risen = (self._rising(t) - ends[0]) / (ends[1] - ends[0])
        return self.gamma_0 + self.log_span.exp() * (1 - risen)

    def dgamma(self, t: Tensor) -> Tensor:
        """Return the derivative of gamma in closed form, so that the loss can be differentiated through it."""
        ends = self._rising(torch.stack([torch.zeros_like(self.gamma_0), torch.ones_like(self.gamma_0)]))
        l1, l2, l3 = (F.softplus(w) for w in (self.l1, self.l2, self.l3))
        hidden = (l2 * (l1 * t).unsqueeze(-1) + self.bias).sigmoid()  # [..., width]
        # f' = l1 + sum_k l3_k h_k (1 - h_k) l2_k l1, where h = sigmoid(l2 l1 t + bias).
        slope = l1 + (hidden * (1 - hidden)) @ (l3 * l2) * l1
        return -self.log_span.exp() * slope / (ends[1] - ends[0])

    def _rising(self, t: Tensor) -> Tensor:
        """The rising function f(t) of the class."""
        l1, l2, l3 = (F.softplus(w) for w in (self.l1, self.l2, self.l3))
        first = l1 * t
        return first + (l2 * first.unsqueeze(-1) + self.bias).sigmoid() @ l3


class Levels:
    """The noise levels of T blocks: block t sees z_{t-1} and makes z_t.

    Args:
        abar: [T + 1], float64, rising.

    Attributes:
        abar: [T + 1], float64, rising.
        shares: the numbers of abar, on the host.
        snr: [T + 1], abar/(1 - abar).
        dsnr: [T], SNR_t - SNR_{t-1} > 0 for t = 1..T.
    """

    def __init__(self, abar: Tensor) -> None:
        self.abar = abar
        self.shares: list[float] = abar.tolist()
        self.snr = abar / (1 - abar)
        self.dsnr = self.snr.diff()

    @property
    def steps(self) -> int:
        """The number of diffusion steps, T."""
        return len(self.dsnr)

    def step(self, t: int) -> tuple[float, float, float]:
        """Return a, b and c of Eq. 3: z_t = a u^ + b z_{t-1} + sqrt(c) eps.

        This is the exact Bayes posterior of z_t given z_{t-1} and u_y = u^.

        Args:
            t: the block, from 1 to T.
        """
        before, now = self.shares[t - 1], self.shares[t]
        # Inference goes from noise to the label, so alpha < 1. If abar_0 = 0, then b = 0: block 1 forgets z_0, which
        # holds nothing of the label.
        alpha = before / now  # alpha_{t-1}
        a = now**0.5 * (1 - alpha) / (1 - before)
        b = alpha**0.5 * (1 - now) / (1 - before)
        c = (1 - now) * (1 - alpha) / (1 - before)
        return a, b, c

    def posterior(self, t: int, u: Tensor, eps: Tensor) -> Tensor:
        """Return z_t ~ q(z_t|y), [B, E] (Eq. 6).

        Args:
            t: the level, from 0 to T.
            u: embeddings [B, E].
            eps: standard normal noise [B, E].
        """
        abar = self.shares[t]
        noisy: Tensor = u * abar**0.5 + eps * (1 - abar) ** 0.5
        return noisy


def kl(abar: Tensor | float, u: Tensor) -> Tensor:
    """Return KL(q(z_0|y) || N(0, I)) = 1/2 [abar_0 (|u|^2 - E) - E log(1 - abar_0)], 0-d, the mean over the batch.

    Args:
        abar: abar_0, a number or 0-d.
        u: embeddings [B, E].
    """
    abar = torch.as_tensor(abar, dtype=u.dtype, device=u.device)
    dim = u.shape[1]
    # log1p, because abar_0 is small: 1 - abar_0 in float32 would drop most digits of abar_0.
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


@dataclass(frozen=True)
class ScheduleSpec(OptionGroup):
    """The name and the ends of a noise schedule, as a rule takes them.

    Attributes:
        name: a key of `SCHEDULES`: "cosine", "linear" or "learned".
        abar_min: abar at t = 0.
        abar_max: abar at t = 1.
    """

    name: ScheduleName = "cosine"
    abar_min: float = 0.0
    abar_max: float = 0.999

    def build(self) -> Schedule:
        """Make the schedule, at the start of training if it is learned."""
        return SCHEDULES[self.name](self.abar_min, self.abar_max)


MOVED_TO_SCHEDULE = {"abar_min": "schedule.abar_min", "abar_max": "schedule.abar_max"}
"""New places of two options that were options of the rules in earlier versions."""
