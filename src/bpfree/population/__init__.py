"""What the black-box rules share: how members differ, how they are run, what is made of their losses."""

from bpfree.population.evaluator import LoopEvaluator, accumulate
from bpfree.population.perturbation import Keyed, MaskedGaussian, Member, Perturbation
from bpfree.population.shaping import Shaping, Softmax

__all__ = ["Keyed", "LoopEvaluator", "MaskedGaussian", "Member", "Perturbation", "Shaping", "Softmax", "accumulate"]
