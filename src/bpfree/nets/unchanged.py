"""Contexts that put the training modes, the buffers and the parameters of modules back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def same_modes(*modules: nn.Module) -> Iterator[None]:
    """Put the mode of every part of some modules, training or evaluation, back after the block.

    Args:
        modules: the modules.
    """
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """Put the buffers of a net back after the block, such as the running statistics of batch norm.

    Args:
        net: the net, which may run in training mode inside the block.
    """
    # Both the tensor and a copy of its content: a pass may write into the buffer, or put another tensor in its place.
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
                module._buffers[name] = buffer  # a forward pass may have put another tensor in its place


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Put the modes, the buffers and the parameters of a net back after the block.

    Args:
        net: the net, which may train inside the block.
    """
    # Parameters are restored from copies: a rule that perturbs them in place subtracts its noise again, which leaves a
    # rounding error.
    weights = [p.detach().clone() for p in net.parameters()]
    with same_modes(net), unchanged_buffers(net):
        yield
    for p, before in zip(net.parameters(), weights, strict=True):
        p.data.copy_(before)
