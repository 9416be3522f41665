"""Evolution strategies that also learn the width of their noise, for each element of each parameter.

`snes`: separable natural evolution strategies. Schaul, Glasmachers, Schmidhuber 2011, https://doi.org/10.1145/2001576.2001692;
Wierstra et al. 2014, https://jmlr.org/papers/v15/wierstra14a.html.

    theta <- theta + eta_theta sigma * sum_i u_i s_i,        sigma <- sigma * exp(eta_sigma/2 sum_i u_i (s_i^2 - 1))

with s_i ~ N(0, I), members theta + sigma s_i, utilities u by rank, eta_sigma = (3 + ln d) / (5 sqrt d) for d
parameters.

`pgpe`: parameter-exploring policy gradients. Sehnke et al. 2010, https://doi.org/10.1016/j.neunet.2009.12.004;
with ranks and ClipUp as in Toklu, Liskowski, Srivastava 2020, https://arxiv.org/abs/2008.02387.

    grad_theta = 1/P sum_i f_i sigma s_i,     sigma <- sigma - eta_sigma 1/P sum_i f_i sigma (s_i^2 - 1)

with mirrored pairs and the centred ranks as f. No element of sigma changes by more than a fifth in a step.

Where we differ: the step of theta is given to the optimiser as a gradient; SNES's eta_theta is its learning rate. Signs
are for losses to be minimised. The rule itself updates sigma by eta_sigma: the optimiser, a schedule or clipping do not
act on it. A new sigma is used from the next step on.
"""

import math
from abc import abstractmethod
from typing import Unpack

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.grad import add_gradients, trainable
from bpfree.noise import Noise
from bpfree.population import SHAPINGS, Gaussian, Generation
from bpfree.population.perturbation import Sample
from bpfree.population.rule import BlackBoxRule, Running
from bpfree.types import Batch, Task


class AdaptiveRule(BlackBoxRule):
    """A rule that learns a sigma for each element of each parameter. The logarithms of sigma are buffers of the rule.

    The rule updates them when it writes gradients. The members of a step use the sigmas from before that step, so two
    calls for the gradients of one step give the same gradients.

    Attributes:
        sigma_lr: eta_sigma, the learning rate of sigma.
        at: the step for which `log_sigmas` are valid, 0-d.
        log_sigmas: log sigma in that step, one tensor for each parameter; made by `bind`.
        next_log_sigmas: log sigma in the next step.
    """

    sigma_lr: float
    at: Tensor

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the sigmas, which all start at the same value.

        Args:
            net: the net.
            task: the task.
            batch: a first batch, for the shapes.
        """
        super().bind(net, task, batch)
        start = [torch.full_like(p.detach(), math.log(self.sigma)) for p in trainable(net)]
        self.log_sigmas = _Tensors(start)
        self.next_log_sigmas = _Tensors([log_sigma.clone() for log_sigma in start])
        self.register_buffer("at", torch.tensor(-1, device=start[0].device))

    @property
    def is_bound(self) -> bool:
        """True if every parameter has its sigma."""
        return hasattr(self, "log_sigmas")

    @property
    def sigmas(self) -> list[Tensor]:
        """The sigmas of the next step, one tensor for each parameter."""
        self.refuse_unbound()
        return [log_sigma.exp() for log_sigma in self.next_log_sigmas.buffers()]

    def generation(self, parameters: list[nn.Parameter], noise: Noise) -> Generation:
        """Return the members of a step, with the sigmas from before that step.

        Args:
            parameters: theta.
            noise: the key of the step; a negative step is a rehearsal and does not change the rule.

        Raises:
            UserError: the rule is not bound to a net with these parameters.
        """
        self.refuse_unbound()
        if [p.shape for p in parameters] != [t.shape for t in self.log_sigmas.buffers()]:
            name = type(self).__name__
            raise UserError(f"{name}: not bound to a net with these parameters. Call rule.bind(net, task, batch) first")
        step = noise.step_number()
        if isinstance(step, Tensor) or step >= 0:  # else it is a rehearsal, which leaves the rule as it is
            new = self.at != step  # a tensor and not a bool, so that the host need not wait for the device
            for now, later in zip(self.log_sigmas.buffers(), self.next_log_sigmas.buffers(), strict=True):
                now.copy_(torch.where(new, later, now))
            self.at.copy_(step) if isinstance(step, Tensor) else self.at.fill_(step)
        scale = [log_sigma.exp() for log_sigma in self.log_sigmas.buffers()]
        return Generation(parameters, self.members, self.perturbation, noise, scale)

    def learn(self, generation: Generation, scores: Tensor) -> None:
        """Add the gradient of theta to `.grad`, and update the sigmas of the next step.

        Args:
            generation: the members.
            scores: their scores [P], to be minimised.
        """
        weights = self.weigh(scores)
        assert not isinstance(generation.scale, float | Tensor)
        steps = generation.combine(weights)
        add_gradients(generation.parameters, [s * step for s, step in zip(generation.scale, steps, strict=True)])
        step = generation.noise.step_number()
        if isinstance(step, Tensor) or step >= 0:
            spreads = generation.combine(weights, of=_spread)
            for log_sigma, spread in zip(self.next_log_sigmas.buffers(), spreads, strict=True):
                log_sigma += self.change(spread)

    def weigh(self, scores: Tensor) -> Tensor:
        """Return the weights w [P] for scores [P]."""
        return self.shaping(scores)

    @abstractmethod
    def change(self, spread: Tensor) -> Tensor:
        """Return the change of log sigma of a parameter.

        Args:
            spread: sum_i w_i (s_i^2 - 1), shaped like the parameter. It may be overwritten.
        """


class _Tensors(nn.Module):
    """A module that is a list of buffers."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        for place, tensor in enumerate(tensors):
            self.register_buffer(str(place), tensor)


def _spread(sample: Sample, weights: Tensor) -> Tensor:
    """The sum_i w_i (s_i^2 - 1), shaped like the parameter."""
    spread: Tensor = torch.tensordot(weights, sample.dense().square().sub_(1), 1)
    return spread


class SNES(AdaptiveRule):
    """The separable natural evolution strategy. With plain SGD and lr 1 it is the published rule.

    Args:
        population: P, the number of members. The paper has 4 + 3 ln(d) for d parameters, which is for small d.
        sigma: standard deviation of the noise at the start.
        sigma_lr: eta_sigma. Default: (3 + ln d) / (5 sqrt d) for d parameters.
        mirrored: true for members in pairs theta + E, theta - E.
        running: see `BlackBoxRule`.
    """

    def __init__(
        self,
        *,
        population: int = 64,
        sigma: float = 0.02,
        sigma_lr: float | None = None,
        mirrored: bool = False,
        **running: Unpack[Running],
    ) -> None:
        super().__init__(
            Gaussian(), SHAPINGS["utilities"], population=population, sigma=sigma, mirrored=mirrored, **running
        )
        if sigma_lr is not None:
            check_positive("sigma_lr", sigma_lr)
            self.sigma_lr = sigma_lr
        self._fixed_lr = sigma_lr

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the sigmas; their default learning rate depends on the number of parameters. See `AdaptiveRule`."""
        super().bind(net, task, batch)
        if self._fixed_lr is None:
            d = sum(p.numel() for p in trainable(net))
            self.sigma_lr = (3 + math.log(d)) / (5 * math.sqrt(d))

    def change(self, spread: Tensor) -> Tensor:
        """Return eta/2 sum_i u_i (s_i^2 - 1), where the weights in `spread` are -u."""
        return spread.mul_(-0.5 * self.sigma_lr)


class PGPE(AdaptiveRule):
    """Parameter-exploring policy gradients with mirrored members, published with the optimiser ClipUp.

    Args:
        population: P, the number of members, even.
        sigma: standard deviation of the noise at the start.
        sigma_lr: eta_sigma, the learning rate of sigma.
        sigma_change: the largest relative change of a sigma in a step, between 0 and 1.
        running: see `BlackBoxRule`.
    """

    def __init__(
        self,
        *,
        population: int = 64,
        sigma: float = 0.02,
        sigma_lr: float = 0.1,
        sigma_change: float = 0.2,
        **running: Unpack[Running],
    ) -> None:
        super().__init__(
            Gaussian(), SHAPINGS["centred_ranks"], population=population, sigma=sigma, mirrored=True, **running
        )
        check_positive("sigma_lr", sigma_lr)
        if not 0 < sigma_change < 1:
            raise UserError(f"sigma_change: found {sigma_change}, allowed: above 0 and below 1")
        self.sigma_lr = sigma_lr
        self.sigma_change = sigma_change

    def weigh(self, scores: Tensor) -> Tensor:
        """Return f/P for scores [P]."""
        return self.shaping(scores) / len(scores)

    def change(self, spread: Tensor) -> Tensor:
        """Return log(1 - eta spread), limited to the largest relative change."""
        return spread.mul_(-self.sigma_lr).clamp_(-self.sigma_change, self.sigma_change).log1p_()
