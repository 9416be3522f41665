"""Memory order of feature maps: convolutions on a CPU are faster if their feature maps lie channels last.

`bpfree.training.rehearsal` decides the order. The columns of a matrix [D, H] count the features of a map channel by
channel. The map is large and the matrix is small, so we reorder the matrix.
"""

from typing import Any

import torch
from torch import Tensor, optim
from torch.nn import functional as F

from bpfree.inputs import Inputs, apply


def channels_last(x: Inputs) -> Inputs:
    """The input with its images and feature maps [B, C, H, W] in that memory order; their values are the same."""
    return apply(x, lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t)


def project(h: Tensor, matrix: Tensor) -> Tensor:
    """The product h.flatten(1) @ matrix.T, [B, D]; h [B, ...] with H values a sample, matrix [D, H]."""
    if not lies_channels_last(h):
        return F.linear(h.flatten(1), matrix)
    return F.linear(h.permute(0, 2, 3, 1).flatten(1), _channels_last(matrix, h))


def spread(signal: Tensor, matrix: Tensor, like: Tensor) -> Tensor:
    """The product signal @ matrix, of the shape and memory order of `like` [B, ...]; signal [B, D], matrix [D, H]."""
    if not lies_channels_last(like):
        return (signal @ matrix).view_as(like)
    b, channels, height, width = like.shape
    return (signal @ _channels_last(matrix, like)).view(b, height, width, channels).permute(0, 3, 1, 2)


def keep_order(h: Tensor) -> None:
    """Have the error of h arrive in the memory order of h.

    A loss that sees a feature map flat sends its error back in another, in which convolutions are 1.6 times as slow.
    """
    if h.requires_grad and lies_channels_last(h):
        h.register_hook(lambda error: error.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]


def keep_gradients_in_order(optimizer: optim.Optimizer) -> None:
    """Have gradients lie as their parameters do whenever the optimiser steps.

    Fused optimisers walk parameter and gradient side by side as they lie in memory, so that each weight of a
    channels-last convolution would move by the gradient of another. Autograd takes care of it; a rule that writes
    `.grad` itself need not.
    """
    optimizer.register_step_pre_hook(_put_gradients_in_order)


def _put_gradients_in_order(optimizer: optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p, dtype=p.grad.dtype).copy_(p.grad)


def lies_channels_last(h: Tensor) -> bool:
    """Whether h is a batch of feature maps with the channels of a pixel side by side, and in no other order."""
    return h.dim() == 4 and not h.is_contiguous() and h.is_contiguous(memory_format=torch.channels_last)


def _channels_last(matrix: Tensor, h: Tensor) -> Tensor:
    """[D, H] with its columns in the order in which h lies."""
    return matrix.view(len(matrix), *h.shape[1:]).permute(0, 2, 3, 1).flatten(1)
