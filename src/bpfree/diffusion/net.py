"""The net that the NoProp rules train."""

from typing import Protocol, TypeGuard

from torch import nn


class DenoisingNet(Protocol):
    """T denoising blocks. Block t is head t on the features of a trunk.

    Attributes:
        trunks: x [B, ...] -> features [B, H]. As many as heads, one for each block; or a single one, which belongs to
            block 1, the others reading its features detached.
        heads: (features [B, H], z [B, E]) -> scores [B, D], or estimates [B, E] if `predicts` says so. If `timed`, they
            take the times [B] as a third argument.
        embedding_dim: E.
        predicts: "scores" or "embedding".
        timed: whether the heads are told the time, as a continuous rule needs it; a discrete one has a head for each.
        local: whether each stage of the single trunk, a Sequential, is to learn by a loss of its own.
    """

    trunks: nn.ModuleList
    heads: nn.ModuleList
    embedding_dim: int
    predicts: str
    timed: bool
    local: bool


_NEEDED = tuple(DenoisingNet.__annotations__)


def is_denoising(net: nn.Module) -> TypeGuard[DenoisingNet]:
    """Whether a net has all that a `DenoisingNet` needs.

    `isinstance` with a protocol cannot tell: since Python 3.12 it does not see the submodules of a module.
    """
    return all(hasattr(net, name) for name in _NEEDED)
