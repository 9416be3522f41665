"""Softmax recombination of perturbed weights.

Copies of the weights are perturbed, scored, and averaged with the softmax of their losses as weights. It is the update
of model predictive path integral control (Williams, Aldrich, Theodorou 2015, https://arxiv.org/abs/1509.01149) with the
weights of a net in place of a sequence of controls, and with a mask of elements. We know of no paper that trains
classifiers by it.

    theta_i = theta + m_i * N(0, sigma^2),  m_i ~ Bernoulli(p)          i = 1..P
    theta  <- sum_i softmax(-loss_i / T)_i theta_i

To first order in 1/T its expected step is -(p sigma^2 / T) grad L.

Where we differ: the step is given to the optimiser as the gradient -sum_i w_i (theta_i - theta). Plain SGD with lr 1 is
the equation, and any other optimiser can be chosen. T = 1 is far too large for a mean loss: all copies then have nearly
the same weight, and the rule stays at chance. Our default is "auto". In the paper the distance from the present
controls also costs something; here a copy has only its loss.
"""

from typing import Literal, Unpack

from torch import Tensor

from bpfree.grad import add_gradients
from bpfree.population import Generation, MaskedGaussian, Softmax
from bpfree.population.rule import BlackBoxRule, Running


class Recombine(BlackBoxRule):
    """A rule that averages perturbed copies of the weights by the softmax of their losses.

    Args:
        population: P, the number of copies.
        sigma: standard deviation of a perturbed weight.
        p: the probability that a weight is perturbed.
        temperature: T in units of the mean loss, or "auto" for the standard deviation of the losses of the generation.
        mirrored: true for copies in pairs theta + E, theta - E; this halves the noise of the step.
        sigma_decay: the factor by which sigma is multiplied after each step.
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
        """Add -sum_i w_i (theta_i - theta) to `.grad`; see `BlackBoxRule`."""
        add_gradients(generation.parameters, generation.combine(self.shaping(scores) * generation.sigma))
