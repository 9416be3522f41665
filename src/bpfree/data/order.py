"""A shuffled order for samples that are read well only if they are neighbours, such as those of one shard.

The blocks of neighbours come in a random order. Samples of consecutive blocks, so many as a window holds, are mixed:
each batch has a share of each block of its window. Within a batch the samples are sorted by the place of their block in
the window. So a process that needs certain rows of all batches reads few of the blocks, and yet the batches depend on
the key alone.
"""

import torch
from torch import Tensor

from bpfree.data.files.rows import Blocks
from bpfree.noise import Noise

_GOLDEN = (5**0.5 - 1) / 2


def local_order(blocks: Blocks, noise: Noise, batch_size: int) -> Tensor:
    """Return an order of all samples, int64 [N].

    Args:
        blocks: the block of each sample, and the size of the window.
        noise: the key.
        batch_size: the number of samples B in a batch; the samples of each full batch are sorted by block.

    Example:
        >>> blocks = Blocks(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), window=6)
        >>> blocks.of[local_order(blocks, Noise(1), 3)].tolist()
        [2, 1, 1, 2, 2, 1, 0, 0, 0]
    """
    of = blocks.of
    sizes = torch.bincount(of)  # [K]
    place = torch.empty_like(sizes)
    place[noise.fold("blocks").permutation(len(sizes))] = torch.arange(len(sizes))
    window, height = _windows(sizes, place, blocks.window)
    # The samples of a block in a random order, block after block: a stable sort keeps the order within a block.
    rows = noise.permutation(len(of))
    rows = rows[of[rows].argsort(stable=True)]
    # The i-th of n samples comes at the time (i + u) / n of its window. So each batch has about the same share of each
    # block, and a process that needs certain rows of all batches needs the same blocks for all. Multiples of the golden
    # ratio as u: the blocks that have one sample more than others in a batch lie evenly between the others.
    u = (place * _GOLDEN + noise.fold("within").rand(1, dtype=torch.float64)) % 1
    nth = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[of[rows]]
    rows = rows[(window[of[rows]] + (nth + u[of[rows]]) / sizes[of[rows]]).argsort(stable=True)]
    full = rows[: len(rows) // batch_size * batch_size].view(-1, batch_size)
    by_block = height[of[full]].argsort(dim=1, stable=True)
    return torch.cat([full.gather(1, by_block).flatten(), rows[full.numel() :]])


def _windows(sizes: Tensor, place: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return for each of K blocks the number of its window, and the share of the window that comes before it.

    Args:
        sizes: the number of samples in each block, [K].
        place: where each block comes, [K].
        window: the number of samples in a window, about.
    """
    order = place.argsort()
    before = sizes[order].cumsum(0) - sizes[order]
    number = before // window
    number = number.diff(prepend=number[:1]).bool().cumsum(0)  # without gaps, which a large block leaves
    whole = torch.zeros_like(sizes).index_add_(0, number, sizes[order])  # the samples in each window
    height = (before - (whole.cumsum(0) - whole)[number]).double() / whole.clamp(min=1)[number]
    return number[place], height[place]
