"""The shared parts of the black-box rules: the noise of members, ways to run them, and weights from their scores."""

from bpfree.population.choice import EvaluatorName, choose
from bpfree.population.evaluators import Evaluator, InPlace, Judge, Loop, Vmap
from bpfree.population.generation import Generation, Member
from bpfree.population.lowrank import LowRankEvaluator
from bpfree.population.perturbation import (
    PERTURBATIONS,
    Gaussian,
    LowRank,
    MaskedGaussian,
    Perturbation,
    Rademacher,
)
from bpfree.population.score import OBJECTIVES, Score
from bpfree.population.shaping import SHAPINGS, Shaping, Softmax

__all__ = [
    "OBJECTIVES",
    "PERTURBATIONS",
    "SHAPINGS",
    "Evaluator",
    "EvaluatorName",
    "Gaussian",
    "Generation",
    "InPlace",
    "Judge",
    "Loop",
    "LowRank",
    "LowRankEvaluator",
    "MaskedGaussian",
    "Member",
    "Perturbation",
    "Rademacher",
    "Score",
    "Shaping",
    "Softmax",
    "Vmap",
    "choose",
]
