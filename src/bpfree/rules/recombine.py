"""Softmax recombination.

A population rule of public code: copies of the weights are perturbed, scored, and averaged by the softmax of their
losses. It is model predictive path integral control (Williams et al. 2017, https://arxiv.org/abs/1509.01149) on the
weights, with an element mask.

    theta_i = theta + m_i * N(0, sigma^2),  m_i ~ Bernoulli(p)          i = 1..P
    theta  <- sum_i softmax(-loss_i / T)_i theta_i

To first order in 1/T its expected step is -(p sigma^2 / T) grad L.

Where we differ: the step is handed to the optimiser as the gradient -sum_i w_i (theta_i - theta), so plain SGD with
lr 1 is the published rule and anything else is an option. Public code sums the loss over its 118 minibatches, so its
temperature 1 is 1/118 on the mean loss; with T = 1 on the mean loss the rule stays at chance. Default is "auto".
"""

from typing import Literal, Unpack

from torch import Tensor

from bpfree.grad import add_gradients
from bpfree.population import Generation, MaskedGaussian, Softmax
from bpfree.population.rule import BlackBoxRule, Running


class Recombine(BlackBoxRule):
    """Softmax recombination of perturbed copies.

    Args:
        population: P, the number of copies.
        sigma: standard deviation of a perturbed weight.
        p: probability that a weight is perturbed.
        temperature: T in units of the mean loss, or "auto" for the standard deviation of the losses of the generation.
        mirrored: copies come in pairs theta + E, theta - E; halves the noise of the step.
        sigma_decay: what sigma is multiplied by after each step.
        running: see `BlackBoxRule`.
    """

    def __init__(
        self,
        *,
        population: int = 10,
        sigma: float = 0.01,
        p: float = 0.5,
        temperature: float | Literal["auto"] = "auto",
        mirrored: bool = False,
        sigma_decay: float = 1.0,
        **running: Unpack[Running],
    ) -> None:
        super().__init__(
            MaskedGaussian(p),
            Softmax(temperature),
            population=population,
            sigma=sigma,
            mirrored=mirrored,
            sigma_decay=sigma_decay,
            **running,
        )

    def learn(self, generation: Generation, scores: Tensor) -> None:
        """-sum_i w_i (theta_i - theta)."""
        assert isinstance(generation.scale, float)
        add_gradients(generation.parameters, generation.combine(self.shaping(scores) * generation.scale))
