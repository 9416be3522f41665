"""Find samples that are copies of one original: validation must not share an original with training.

Oversampled data have copies, such as those of a WeightedRandomSampler. A copy in training would let the net see a
validation sample, and validation would look better than it is.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset


def original(data: Any, index: Any) -> Hashable:
    """Return a key of the sample behind an index of a torch Dataset; copies of one sample have the same key.

    Args:
        data: a torch Dataset. Parts (Subset) and joined data sets (ConcatDataset) are followed to the data set inside.
        index: an index of `data`.
    """
    while True:
        if isinstance(data, Subset):
            data, index = data.dataset, data.indices[index]
        elif isinstance(data, ConcatDataset):
            # ConcatDataset allows negative indices, which name the same samples as positive ones.
            index = int(index) % len(data)
            which = bisect_right(data.cumulative_sizes, index)
            data, index = data.datasets[which], index - ([0, *data.cumulative_sizes][which])
        else:
            # A sampler may give tensors, which compare by identity as keys of a dict: equal indices would look
            # different.
            return id(data), (int(index) if isinstance(index, Tensor) else index)


def number_copies(keys: Sequence[Hashable]) -> Tensor | None:
    """Number the samples so that copies have the same number, int64 [N]; return None if each sample occurs once.

    Args:
        keys: a key for each sample, from `original`.

    Example:
        >>> number_copies(["a", "b", "a"]), number_copies(["a", "b"])
        (tensor([0, 1, 0]), None)
    """
    number_of: dict[Hashable, int] = {}
    numbers = [number_of.setdefault(key, len(number_of)) for key in keys]
    return None if len(number_of) == len(numbers) else torch.tensor(numbers)
