"""The form of a segment's output, and layers that make one vector of it, from which auxiliary nets read."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.local.segments import Segment, channel_axis
from bpfree.nets.blocks import BlockForm, Pool

Kind = Literal["map", "places", "tokens", "steps", "vector"]


class Features(NamedTuple):
    """The form of a segment's output.

    Attributes:
        kind: "map" for a feature map [channels, h, w]; "places" for channels at places in one dimension or in three;
            "tokens" for [T, H] where the task has one answer for all tokens; "steps" where it has an answer at each
            step; "vector" for anything else.
        shape: of one sample, or of one step.
        channels: the number of channels of a map, H of tokens, the number of values of a step or of a vector.
    """

    kind: Kind
    shape: torch.Size
    channels: int

    @classmethod
    def of(cls, net: nn.Module, segment: Segment, *, per_step: bool) -> "Features":
        """Return the form of a segment's output.

        Args:
            net: the net that was cut.
            segment: one of its hidden segments.
            per_step: True if the task has an answer at each step, and the segment has the shape of one step.
        """
        shape = segment.shape
        if per_step or len(shape) < 2:
            return cls("steps" if per_step else "vector", shape, shape.numel())
        if channel_axis(net, segment) == -1:
            return cls("tokens", shape, shape[-1])
        return cls("map" if len(shape) == 3 else "places", shape, shape[0])

    def to_vector(self, net: nn.Module, *, norm: bool = True) -> list[nn.Module]:
        """Return new layers that make a vector [B, channels] of the features, or [B, T, channels] of steps.

        Channels are averaged over their places. Tokens and steps are normalised as the net does it, and tokens are then
        averaged.

        Args:
            net: the net that was cut, for its normalisation.
            norm: False for features that are normalised already.
        """
        if self.kind in ("map", "places"):
            return [MeanOverPlaces()]
        if self.kind == "vector":
            return [nn.Flatten()]
        flat: list[nn.Module] = [nn.Flatten(2)] if self.kind == "steps" and len(self.shape) > 1 else []
        normed = [norm_of(net, self.channels)] if norm else []
        return [*flat, *normed, *([Pool("mean")] if self.kind == "tokens" else [])]


class MeanOverPlaces(nn.Module):
    """The mean of each channel over its places, [B, channels, ...] -> [B, channels]."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean over places, [B, channels]."""
        return h.mean(tuple(range(2, h.dim())))


def norm_of(net: nn.Module, width: int) -> nn.Module:
    """Return a new normalisation of features [..., width]: that of the net's own blocks, else LayerNorm.

    Args:
        net: the net that was cut.
        width: H.
    """
    form = form_of(net, width)
    return nn.LayerNorm(width) if form is None else form.make_norm()


def form_of(net: nn.Module, width: int) -> BlockForm | None:
    """Return the form of the net's Transformer blocks; None if it has no such blocks of bpfree's with this width.

    Args:
        net: the net that was cut.
        width: H.
    """
    forms = (getattr(module, "form", None) for module in net.modules())
    return next((form for form in forms if isinstance(form, BlockForm) and form.width == width), None)
