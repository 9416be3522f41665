"""Classifiers of a rule's own, which read what a part of a net has come to."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class PooledLinear(nn.Module):
    """A linear layer behind a feature map averaged to at most `pooled` features; other features it takes as they are.

    It starts at zero, so that the first error it sends back is zero too.

    Args:
        shape: of the features of one sample.
        outputs: D.
        pooled: features at most; both sides of a map shrink alike until there are no more.
    """

    def __init__(self, shape: Sequence[int], outputs: int, pooled: int = 1024) -> None:
        super().__init__()
        is_map, side = len(shape) == 3, 1
        sides = list(shape[1:])
        while is_map and shape[0] * prod(-(-length // side) for length in sides) > pooled and side < max(sides):
            side += 1
        self.pool = nn.AvgPool2d(side, ceil_mode=True) if is_map else nn.Identity()
        self.linear = nn.Linear(shape[0] * prod(-(-length // side) for length in sides), outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, ...] -> [B, D]."""
        return self.linear(self.pool(h).flatten(1))  # type: ignore[no-any-return]
