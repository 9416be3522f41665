"""Which samples are copies of one: oversampled data have some, and validation must share none with training."""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset


def origin(data: Any, index: Any) -> Hashable:
    """The sample behind an index of a torch Dataset, through parts (Subset) and joined data sets (ConcatDataset)."""
    while True:
        if isinstance(data, Subset):
            data, index = data.dataset, data.indices[index]
        elif isinstance(data, ConcatDataset):
            index = int(index) % len(data)
            which = bisect_right(data.cumulative_sizes, index)
            data, index = data.datasets[which], index - ([0, *data.cumulative_sizes][which])
        else:
            return id(data), (int(index) if isinstance(index, Tensor) else index)


def numbered(keys: Sequence[Hashable]) -> Tensor | None:
    """Number the samples so that copies have the same number, int64 [N]; return None if there are no copies.

    >>> numbered(["a", "b", "a"]), numbered(["a", "b"])
    (tensor([0, 1, 0]), None)
    """
    known: dict[Hashable, int] = {}
    numbers = [known.setdefault(key, len(known)) for key in keys]
    return None if len(known) == len(numbers) else torch.tensor(numbers)
