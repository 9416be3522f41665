"""The net that the NoProp rules train."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class DenoisingNet(Protocol):
    """T denoising blocks. Block t is head t on the features of a trunk.

    Attributes:
        trunks: x [B, ...] -> features [B, H]. As many as heads, one for each block; or a single one, which belongs to
            block 1, the others reading its features detached.
        heads: (features [B, H], z [B, E]) -> logits [B, D].
        embedding_dim: E.
    """

    trunks: nn.ModuleList
    heads: nn.ModuleList
    embedding_dim: int
