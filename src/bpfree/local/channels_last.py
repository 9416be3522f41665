"""Products of matrices with feature maps that lie channels last in memory.

Convolutions on a CPU are faster in this memory order; `bpfree.training.rehearsal` decides where it is used. The columns
of a feedback matrix or head [D, H] count the values of a map channel by channel. The map is large and the matrix is
small, so these functions reorder the matrix and not the map.
"""

from typing import Any

import torch
from torch import Tensor, optim
from torch.nn import functional as F

from bpfree.inputs import Inputs, apply


def channels_last(x: Inputs) -> Inputs:
    """Return the input with its images and feature maps in channels-last order; their values stay the same.

    Args:
        x: tensors of any shape; those with four dimensions [B, C, H, W] are reordered.
    """
    return apply(x, lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t)


def project(h: Tensor, matrix: Tensor) -> Tensor:
    """Return the product h.flatten(1) @ matrix.T, [B, D].

    Args:
        h: [B, ...], features with H values a sample, in any memory order.
        matrix: [D, H].
    """
    return F.linear(rows(h), columns(matrix, h))


def spread(signal: Tensor, matrix: Tensor, like: Tensor) -> Tensor:
    """Return the product signal @ matrix in the shape and memory order of features.

    Args:
        signal: [B, D].
        matrix: [D, H].
        like: [B, ...], features with H values a sample.

    Returns:
        A tensor of the shape of `like`.
    """
    return from_rows(signal @ columns(matrix, like), like)


def rows(h: Tensor) -> Tensor:
    """Return features [B, ...] as rows [B, H], with the values of a sample in the order in which they lie."""
    return (h.permute(0, 2, 3, 1) if lies_channels_last(h) else h).flatten(1)


def from_rows(flat: Tensor, like: Tensor) -> Tensor:
    """Return rows [B, H], as `rows` gives them, in the shape and memory order of features.

    Args:
        flat: [B, H].
        like: [B, ...], features with H values a sample.
    """
    if not lies_channels_last(like):
        return flat.view_as(like)
    b, channels, height, width = like.shape
    return flat.view(b, height, width, channels).permute(0, 3, 1, 2)


def columns(matrix: Tensor, h: Tensor) -> Tensor:
    """Return a matrix [D, H] with its columns in the order of `rows`.

    Args:
        matrix: [D, H]; its columns count the values of a map channel by channel.
        h: [B, ...], features with H values a sample.
    """
    if not lies_channels_last(h):
        return matrix
    return matrix.view(len(matrix), *h.shape[1:]).permute(0, 2, 3, 1).flatten(1)


def keep_order(h: Tensor) -> None:
    """Make the error of h arrive in the memory order of h.

    A loss that flattens a map sends its error back in another order, in which convolutions are 1.6 times as slow.

    Args:
        h: features with a graph; nothing happens unless they lie channels last.
    """
    if h.requires_grad and lies_channels_last(h):
        h.register_hook(lambda error: error.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]


def keep_gradients_in_order(optimizer: optim.Optimizer) -> None:
    """Put gradients in the memory order of their parameters before each step of the optimiser.

    Fused optimisers walk through the memory of a parameter and its gradient side by side. If their orders
    differ, each weight of a channels-last convolution moves by the gradient of another weight. Autograd gives the right
    order; a rule that writes `.grad` itself may not.

    Args:
        optimizer: it gets a hook that runs before each step.
    """
    optimizer.register_step_pre_hook(_put_gradients_in_order)


def _put_gradients_in_order(optimizer: optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p, dtype=p.grad.dtype).copy_(p.grad)


def lies_channels_last(h: Tensor) -> bool:
    """Return True if h is a batch of feature maps [B, C, H, W] that lie channels last, and in this order only.

    Maps of one channel or one pixel are contiguous in both orders; for them the answer is False.

    Args:
        h: a tensor of any shape.
    """
    return h.dim() == 4 and not h.is_contiguous() and h.is_contiguous(memory_format=torch.channels_last)
