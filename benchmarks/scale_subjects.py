"""The nets, batches and rules of `scale.py`: the same for the measured steps and for the runs in several processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from bpfree.nets import Denoiser, conv, mlp
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

CLASSES = 10


class Subject(NamedTuple):
    """A net with its batch.

    Attributes:
        make: makes the net.
        shape: of a sample.
        batch: samples of a step.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def _denoiser(trunk: str, blocks: int = 10) -> nn.Module:
    return Denoiser((1, 28, 28), CLASSES, blocks=blocks, trunk=trunk, backbone={"name": "conv", "norm": True})


SUBJECTS = {
    "small": Subject(lambda: mlp(784, CLASSES, hidden=[32]), (784,), 256),  # that of mnist/es
    "wide": Subject(lambda: mlp(784, CLASSES, hidden=[1000] * 2), (784,), 128),  # that of mnist/mono_forward
    "deep": Subject(lambda: mlp(784, CLASSES, hidden=[1000] * 8), (784,), 128),
    "conv": Subject(lambda: conv((3, 32, 32), CLASSES, channels=[32, 64, 128], hidden=256), (3, 32, 32), 128),
    "noprop": Subject(lambda: _denoiser("own"), (1, 28, 28), 64),
    "noprop_shared": Subject(lambda: _denoiser("shared"), (1, 28, 28), 64),
    "noprop_one": Subject(lambda: _denoiser("own", 1), (1, 28, 28), 64),  # a block of the two above
}


def batch_of(subject: Subject, samples: int | None = None) -> Batch:
    """Return random samples with random labels, the same in each process."""
    generator = torch.Generator().manual_seed(0)
    rows = samples or subject.batch
    x = torch.randn(rows, *subject.shape, generator=generator)
    return Batch(x, torch.randint(CLASSES, (rows,), generator=generator))


def trainer_of(subject: Subject, rule: Any, mesh: str = "auto") -> Trainer:
    """Return a trainer with Adam.

    Args:
        subject: the net.
        rule: a name or a spec.
        mesh: the way in which processes share the training.
    """
    torch.manual_seed(0)
    compute = {"precision": "float32", "mesh": mesh}
    return Trainer(subject.make(), rule, Classify(CLASSES), {"name": "adam", "lr": 1e-4}, compute=compute)
