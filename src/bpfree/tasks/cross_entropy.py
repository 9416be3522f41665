"""Cross-entropy of many tokens over a large vocabulary, in the memory of the logits and of their gradient alone."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 22
"""The number of logits that are widened to float32 at a time."""


def summed_cross_entropy(logits: Tensor, y: Tensor, ignore_index: int) -> Tensor:
    """Return the sum of the cross-entropies of N tokens, 0-d, in float32 or wider.

    `torch.nn.functional.cross_entropy` keeps the log-softmax [N, V] in float32 beside the logits, and makes a gradient
    [N, V] of each. Here a few tokens are done at a time, and the softmax is computed again for the gradient. So beside
    the logits only their gradient has [N, V] values.

    Args:
        logits: [N, V].
        y: the index of each token, int64 [N].
        ignore_index: the index of tokens that do not count.

    Example:
        >>> float(summed_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, -100]), -100))  # 2 log 2
        1.3862943649291992
    """
    total: Tensor = _Summed.apply(logits, y, ignore_index)  # type: ignore[no-untyped-call]
    return total


class _Summed(torch.autograd.Function):
    """The sum of cross-entropies; its derivative in the logits is softmax - one-hot."""

    generate_vmap_rule = True  # for rules that run many members side by side

    @staticmethod
    def forward(logits: Tensor, y: Tensor, ignore_index: int) -> Tensor:
        """Return the sum, 0-d."""
        total = logits.new_zeros((), dtype=_wide(logits))
        for rows, labels in _chunks(logits, y):
            total = total + F.cross_entropy(rows, labels, ignore_index=ignore_index, reduction="sum")
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        """Keep logits and indices, and no softmax."""
        logits, y, ctx.ignore_index = inputs
        ctx.save_for_backward(logits, y)
        ctx.save_for_forward(logits, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient [N, V] in the type of the logits."""
        logits, y = ctx.saved_tensors
        gradient, done = torch.empty_like(logits), 0
        # Parts are written into their place. Joined at the end, they would need the memory of the logits once more.
        for slope in _slopes(logits, y, ctx.ignore_index):
            gradient[done : done + len(slope)] = slope * grads[0]
            done += len(slope)
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Return the derivative in the direction of a tangent [N, V], for rules that differentiate forwards."""
        logits, y = ctx.saved_tensors
        total: Tensor = logits.new_zeros((), dtype=_wide(logits))
        for slope, (part, _) in zip(_slopes(logits, y, ctx.ignore_index), _chunks(tangents[0], y), strict=True):
            total = total + (slope * part).sum()
        return total


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over some tokens at a time: their logits in float32 or wider, and their indices."""
    step = max(CHUNK // logits.shape[1], 1)
    for start in range(0, len(y), step):
        yield logits[start : start + step].to(_wide(logits)), y[start : start + step]


def _slopes(logits: Tensor, y: Tensor, ignore_index: int) -> Iterator[Tensor]:
    """Iterate over the derivatives of the sum in some logits at a time, softmax - one-hot."""
    for rows, labels in _chunks(logits, y):
        counts = (labels != ignore_index).unsqueeze(1)
        chosen = labels.unsqueeze(1).where(counts, 0)
        # Not in place: a second derivative needs the softmax as it is.
        yield rows.softmax(1).scatter_add(1, chosen, -torch.ones_like(chosen, dtype=rows.dtype)) * counts
