"""Evolution strategies: estimate the gradient of a population's expected loss from its noise and its scores.

    grad E_eps[L(theta + sigma eps)] = E[f eps] / sigma  ~  1/(P sigma) sum_i f_i eps_i

`es`: Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
https://arxiv.org/abs/1703.03864: mirrored pairs of Gaussian noise, f the centred ranks of the losses, Adam.

`eggroll`: Sarkar et al. 2025, "Evolution Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652: the noise on
a weight is a matrix of low rank, A B^T / sqrt(r), so that members can share most of their computation.

`spsa`: Spall 1992, https://doi.org/10.1109/9.119632, as in Malladi et al. 2023, "Fine-Tuning Language Models with Just
Forward Passes" (MeZO), https://arxiv.org/abs/2305.17333: one mirrored pair,
g = (L(theta + sigma z) - L(theta - sigma z)) / (2 sigma) z, where z is drawn again from its seed and never stored.

Where we differ: g = 1/(P sigma) sum_i f_i eps_i is given to any optimiser as the gradient. The code of `es`'s authors,
https://github.com/openai/evolution-strategies-starter, gives sigma g, which Adam scales away. In EGGROLL's paper f are
the z-scores, and the step is alpha/P sum f_i E_i; our step is the same with the learning rate alpha sigma. The code of
its authors, https://github.com/ESHyperscale/HyperscaleES, gives sigma^2 sqrt(P) g to the optimiser, and adds 1e-5 to
the variance of the scores. With SGD our learning rate is sigma^2 sqrt(P) times theirs. Ours keeps g an estimate of the
gradient, whose size does not depend on P. MeZO updates
each parameter while its noise is drawn; here gradients are written for the optimiser, which takes the memory of the
parameters once more.
"""

from typing import ClassVar, Literal, Unpack

from bpfree.errors import check_choice
from bpfree.population import PERTURBATIONS, SHAPINGS, LowRank
from bpfree.population.rule import RUNNING, BlackBoxRule, Running

IN_PLACE: Running = {"evaluator": "in_place"}
Shape = Literal["centred_ranks", "zscore", "utilities", "raw"]


class ES(BlackBoxRule):
    """The evolution strategy of OpenAI.

    Args:
        population: P, the number of members.
        sigma: standard deviation of the noise.
        perturbation: "gaussian" or "rademacher" (+1 or -1).
        shaping: the function from losses to weights: "centred_ranks", "zscore", "utilities" (as in natural evolution
            strategies) or "raw".
        mirrored: true for members in pairs theta + E, theta - E.
        sigma_decay: the factor by which sigma is multiplied after each step.
        running: see `BlackBoxRule`.
    """

    def __init__(
        self,
        *,
        population: int = 64,
        sigma: float = 0.02,
        perturbation: Literal["gaussian", "rademacher"] = "gaussian",
        shaping: Shape = "centred_ranks",
        mirrored: bool = True,
        sigma_decay: float = 1.0,
        **running: Unpack[Running],
    ) -> None:
        check_choice("perturbation", perturbation, PERTURBATIONS)
        check_choice("shaping", shaping, SHAPINGS)
        super().__init__(
            PERTURBATIONS[perturbation](),
            SHAPINGS[shaping],
            population=population,
            sigma=sigma,
            mirrored=mirrored,
            sigma_decay=sigma_decay,
            **running,
        )


class Eggroll(BlackBoxRule):
    """An evolution strategy with noise of low rank.

    Args:
        population: P, the number of members.
        sigma: standard deviation of the noise.
        rank: r, the rank of the noise on a weight.
        shaping: the function from losses to weights: "zscore", "centred_ranks", "utilities" or "raw".
        mirrored: true for members in pairs theta + E, theta - E.
        sigma_decay: the factor by which sigma is multiplied after each step.
        running: see `BlackBoxRule`.
    """

    def __init__(
        self,
        *,
        population: int = 64,
        sigma: float = 0.02,
        rank: int = 1,
        shaping: Shape = "zscore",
        mirrored: bool = True,
        sigma_decay: float = 1.0,
        **running: Unpack[Running],
    ) -> None:
        check_choice("shaping", shaping, SHAPINGS)
        super().__init__(
            LowRank(rank),
            SHAPINGS[shaping],
            population=population,
            sigma=sigma,
            mirrored=mirrored,
            sigma_decay=sigma_decay,
            **running,
        )


class SPSA(BlackBoxRule):
    """Simultaneous perturbation: one mirrored pair, whose difference of losses is used without any shaping.

    Args:
        sigma: standard deviation of the noise.
        perturbation: "gaussian" as in MeZO, or "rademacher" (+1 or -1) as in Spall's paper.
        pairs: the number of mirrored pairs, whose differences are averaged.
        sigma_decay: the factor by which sigma is multiplied after each step.
        evaluator: "in_place" as in MeZO: noise is added and subtracted without a copy of the parameters, which stay the
            same up to rounding. The other evaluators: see `BlackBoxRule`.
        running: see `BlackBoxRule`.
    """

    mean_over_samples: ClassVar[bool] = True  # scores are not ranked
    shared_defaults: ClassVar[Running] = RUNNING | IN_PLACE

    def __init__(
        self,
        *,
        sigma: float = 1e-3,
        perturbation: Literal["gaussian", "rademacher"] = "gaussian",
        pairs: int = 1,
        sigma_decay: float = 1.0,
        **running: Unpack[Running],
    ) -> None:
        check_choice("perturbation", perturbation, PERTURBATIONS)
        super().__init__(
            PERTURBATIONS[perturbation](),
            SHAPINGS["raw"],
            population=2 * pairs,
            sigma=sigma,
            mirrored=True,
            sigma_decay=sigma_decay,
            **(IN_PLACE | running),
        )
