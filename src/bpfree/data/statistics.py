"""Means and standard deviations of training data, by which samples and labels are standardised.

A standard deviation of 0 becomes 1: a value that never varies is only shifted, and nothing is divided by 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree.data.columns import Column, are_numbers
from bpfree.data.files.rows import Rows, chunks
from bpfree.data.order import local_order
from bpfree.noise import Noise

SAMPLE = 8192
"""The number of samples that statistics are computed from, if samples are slow to read."""

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, each a tuple of one or more values."""


def for_statistics(x: Tensor) -> Tensor:
    """Return the samples that statistics are computed from: all samples, or `SAMPLE` by a fixed key if they are slow.

    Args:
        x: training samples [N, ...].
    """
    blocks = x.blocks if isinstance(x, Rows) else None
    if not isinstance(x, Rows) or blocks is None or len(x) <= SAMPLE:
        return x
    # A window of that many samples, so that they come from few blocks.
    order = local_order(blocks._replace(window=SAMPLE), Noise(0).fold("statistics"), 1)
    return x.rows(order[:SAMPLE].sort().values)


def of_bytes(x: Tensor) -> Moments:
    """Return the moments of uint8 images, by channel for [N, C, H, W], else of all values together.

    Values are counted first, because a float copy of all images could exceed the memory. The result is exact.

    Example:
        >>> of_bytes(torch.tensor([[0, 2]], dtype=torch.uint8))
        ((1.0,), (1.0,))
    """
    channels = x.shape[1] if x.dim() == 4 else 1
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in chunks(x):
        for row, values in zip(counts, part.unbind(1) if channels > 1 else (part,), strict=True):
            # `row` is a view of `counts`, so the sum goes there.
            row += torch.bincount(values.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    shares = counts.double() / counts.sum(1, keepdim=True)  # [C, 256]
    means = [float((share * values).sum()) for share in shares]
    stds = [float((share * (values - mean) ** 2).sum()) ** 0.5 for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(std or 1.0 for std in stds)


def of_labels(y: Tensor) -> Moments:
    """Return the moments of labels [N] or [N, ..., D] as numbers, for each of the D."""
    values = y.double().reshape(-1, y.shape[-1] if y.dim() > 1 else 1)
    std = values.std(0, correction=0)
    return tuple(values.mean(0).tolist()), tuple(value or 1.0 for value in std.tolist())


def of_table(x: Tensor, columns: Sequence[Column]) -> Moments:
    """Return the moments of the features [N, F] of a table; 0 and 1 for features that are words, which stay as is."""
    numeric = are_numbers(columns)
    mean = x.double().mean(0).where(numeric, 0.0)
    std = x.double().std(0, correction=0).where(numeric, 1.0)
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())


def limits_of(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of samples [N, ...], which may lie in a file."""
    lows, highs = zip(*((float(part.min()), float(part.max())) for part in chunks(x)), strict=True)
    return min(lows), max(highs)
