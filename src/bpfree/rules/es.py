"""Evolution strategies: the gradient of the expected loss of a population, by weighing its noise.

    grad E_eps[L(theta + sigma eps)] = E[f eps] / sigma  ~  1/(P sigma) sum_i f_i eps_i

`es`: Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
https://arxiv.org/abs/1703.03864: mirrored pairs of Gaussian noise, f the centred ranks of the losses, Adam.

`eggroll`: Sarkar et al. 2025, "Evolution Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652: the noise on
a weight is a matrix of low rank, A B^T / sqrt(r), so that what members have in common is computed once.

`spsa`: Spall 1992, https://doi.org/10.1109/9.119632, as in Malladi et al. 2023, "Fine-Tuning Language Models with Just
Forward Passes" (MeZO), https://arxiv.org/abs/2305.17333: one mirrored pair,
g = (L(theta + sigma z) - L(theta - sigma z)) / (2 sigma) z, with z regenerated from its seed instead of being kept.

Where we differ: f / (P sigma) is handed to any optimiser as the gradient. EGGROLL's paper has f the z-scores and a step
alpha/P sum f_i E_i; that is ours with the learning rate alpha sigma. MeZO updates each parameter as its noise is drawn;
here gradients are written for the optimiser, once the size of the parameters.
"""

from typing import ClassVar, Literal, Unpack

from bpfree.errors import check_choice
from bpfree.population import PERTURBATIONS, SHAPINGS, LowRank
from bpfree.population.rule import BlackBoxRule, Running

IN_PLACE: Running = {"evaluator": "in_place"}
Shape = Literal["centred_ranks", "zscore", "utilities", "raw"]


class ES(BlackBoxRule):
    """OpenAI's evolution strategy.

    Args:
        population: P, the number of members.
        sigma: standard deviation of the noise.
        perturbation: "gaussian" or "rademacher" (+1 or -1).
        shaping: what is made of the losses: "centred_ranks", "zscore", "utilities" (those of natural evolution
            strategies) or "raw".
        mirrored: members come in pairs theta + E, theta - E.
        sigma_decay: what sigma is multiplied by after each step.
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
    """Evolution strategy with noise of low rank.

    Args:
        population: P, the number of members.
        sigma: standard deviation of the noise.
        rank: r of the noise on a weight.
        shaping: what is made of the losses: "zscore", "centred_ranks", "utilities" or "raw".
        mirrored: members come in pairs theta + E, theta - E.
        sigma_decay: what sigma is multiplied by after each step.
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
    """Simultaneous perturbation: one mirrored pair, its difference as it is.

    Args:
        sigma: standard deviation of the noise.
        perturbation: "gaussian", as in MeZO, or "rademacher" (+1 or -1), as in Spall's.
        pairs: of members, whose differences are averaged.
        sigma_decay: what sigma is multiplied by after each step.
        evaluator: "in_place" as in MeZO: noise is added and taken off, without a copy of the parameters, which come
            back but for rounding; others as of `BlackBoxRule`.
        running: see `BlackBoxRule`.
    """

    mean_over_samples: ClassVar[bool] = True  # scores are not ranked

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
