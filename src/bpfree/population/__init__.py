"""The shared parts of the black-box rules: the noise of members, ways to run them, and weights from their scores."""

from bpfree.population.choice import EvaluatorName, choose
from bpfree.population.evaluators import Evaluator, InPlace, Judge, Loop, Vmap
from bpfree.population.generation import Generation
from bpfree.population.lowrank import LowRankEvaluator
from bpfree.population.members import Member, Population
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
from bpfree.population.source import Source

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
    "Population",
    "Rademacher",
    "Score",
    "Shaping",
    "Softmax",
    "Source",
    "Vmap",
    "choose",
]
