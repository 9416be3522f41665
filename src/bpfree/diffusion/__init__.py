"""The shared parts of the rules that denoise: noise, embeddings, solvers, the kinds of net, and NoProp's base class."""

from bpfree.diffusion.embeddings import EMBEDDINGS, Embedding, Images, LabelEmbedding, Learned, OneHot, Prototype
from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.noise_levels import NoiseLevels
from bpfree.diffusion.rule import DiffusionRule, State
from bpfree.diffusion.schedules import (
    SCHEDULES,
    CosineSchedule,
    LearnedSchedule,
    Levels,
    LinearSchedule,
    Schedule,
    ScheduleSpec,
)
from bpfree.diffusion.solvers import SOLVERS, solve

__all__ = [
    "EMBEDDINGS",
    "SCHEDULES",
    "SOLVERS",
    "CosineSchedule",
    "DenoisingNet",
    "DiffusionRule",
    "Embedding",
    "Images",
    "LabelEmbedding",
    "Learned",
    "LearnedSchedule",
    "Levels",
    "LinearSchedule",
    "NoiseLevels",
    "OneHot",
    "Prototype",
    "Schedule",
    "ScheduleSpec",
    "State",
    "solve",
]
