"""Samples and labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.data.files.rows import Rows
from bpfree.inputs import Inputs, apply, one_tensor


class Split(NamedTuple):
    """Samples and labels of one split."""

    x: Inputs  # [N, ...], or several; uint8 for images; Rows if they stay in a file
    y: Tensor  # [N], int64; floating numbers [N, ...] where there are no classes

    @property
    def tensor(self) -> Tensor:
        """The samples, for code that works with a single tensor.

        Raises:
            UserError: there are several.
        """
        return one_tensor(self.x)

    def take(self, index: Tensor) -> "Split":
        """The samples at the given positions. What is in a file stays there."""
        return Split(apply(self.x, lambda x: x.rows(index) if isinstance(x, Rows) else x[index]), self.y[index])

    def slice(self, start: int, count: int) -> "Split":
        """The samples from `start` on. They are not copied."""
        if isinstance(self.x, Rows):
            return self.take(torch.arange(start, start + count))
        return Split(apply(self.x, lambda x: x[start : start + count]), self.y[start : start + count])
