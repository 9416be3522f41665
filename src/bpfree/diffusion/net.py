"""The kind of net that the NoProp rules train."""

from typing import Protocol, TypeGuard

from torch import nn


class DenoisingNet(Protocol):
    """A net of T denoising blocks. Block t is head t on the features of a trunk.

    Attributes:
        trunks: x [B, ...] -> features [B, H]. Either one trunk for each block, or a single trunk. The single trunk
            belongs to block 1, and the other blocks read its features detached.
        heads: (features [B, H], z [B, E]) -> scores [B, D], or an embedding [B, E] if `predicts` says so. Timed heads
            take the times [B] as a third argument.
        embedding_dim: E.
        predicts: "scores" or "embedding".
        timed: True if the heads take the time as an input, as a continuous rule needs it. A discrete rule has one head
            for each time.
        local: True if each stage of the single trunk, a Sequential, shall learn by its own loss.
    """

    trunks: nn.ModuleList
    heads: nn.ModuleList
    embedding_dim: int
    predicts: str
    timed: bool
    local: bool


_NEEDED = tuple(DenoisingNet.__annotations__)


def is_denoising(net: nn.Module) -> TypeGuard[DenoisingNet]:
    """Return True if a net has all attributes of a `DenoisingNet`.

    `isinstance` with a protocol cannot be used: since Python 3.12 it does not see the submodules of a module.

    Args:
        net: any net.
    """
    return all(hasattr(net, name) for name in _NEEDED)
