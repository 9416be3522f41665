"""A split of a data set: its samples and labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.data.files.rows import Rows
from bpfree.inputs import Inputs, apply, one_tensor


class Split(NamedTuple):
    """Samples and labels of one split.

    Attributes:
        x: raw samples [N, ...], or several inputs; uint8 for images; `Rows` if samples stay in a file.
        y: labels, int64 [N], [N, C], [N, H, W] or [N, T]; floating [N, ...] if labels are numbers. `Rows` for a text
            in a file.
    """

    x: Inputs
    y: Tensor

    @property
    def tensor(self) -> Tensor:
        """The samples [N, ...], for code that works with a single tensor.

        Raises:
            UserError: the samples are several tensors.
        """
        return one_tensor(self.x)

    def take(self, index: Tensor) -> "Split":
        """Return the samples at the positions `index` [n], int64. Samples in a file stay there."""
        return Split(apply(self.x, lambda x: _rows(x, index)), _rows(self.y, index))

    def slice(self, start: int, count: int) -> "Split":
        """Return `count` samples from position `start` on, without a copy."""
        if isinstance(self.x, Rows) or isinstance(self.y, Rows):
            return self.take(torch.arange(start, start + count))
        return Split(apply(self.x, lambda x: x[start : start + count]), self.y[start : start + count])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.rows(index) if isinstance(x, Rows) else x[index]
