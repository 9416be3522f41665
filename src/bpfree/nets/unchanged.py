"""Leave modules as they were: their training modes and their buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """Undo what a forward pass does to buffers (batch-norm statistics) when it is only a rehearsal."""
    saved = [
        (module, name, buffer, buffer.clone())
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in saved:
                buffer.copy_(before)
                module._buffers[name] = buffer  # a forward pass may have put another in its place
