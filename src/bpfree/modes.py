"""Training and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def same_modes(*modules: nn.Module) -> Iterator[None]:
    """After the block every part of the modules is in the mode in which it was before, training or evaluation."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
