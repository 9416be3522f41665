"""What the NoProp rules share: noise schedules, label embeddings, and the net they expect."""

from bpfree.diffusion.embeddings import OneHotEmbedding
from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.schedules import CosineSchedule

__all__ = ["CosineSchedule", "DenoisingNet", "OneHotEmbedding"]
