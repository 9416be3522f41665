"""Fresh copies of a net's stages, from which auxiliary nets are made, and layers that bring features to their shape."""

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import features_of
from bpfree.local.autotaps import DROPOUTS
from bpfree.local.maps import average


class Copies(nn.Module):
    """Modules that run one after the other. Those that are copies of a block can take its further arguments.

    Args:
        modules: each takes and gives one tensor.
        more: which of them also take the further arguments.
    """

    def __init__(self, modules: Sequence[nn.Module], more: Sequence[bool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.more = tuple(more)

    def forward(self, h: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the output of the last module.

        Args:
            h: [B, ...].
            args: further arguments by place, as the blocks of the net get them.
            kwargs: further arguments by name.
        """
        for layer, takes_more in zip(self.layers, self.more, strict=True):
            out = features_of(layer(h, *args, **kwargs) if takes_more else layer(h))
            assert out is not None, "the net was cut behind the original"
            h = out
        return h


def fresh(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Return copies with other weights of the same distribution, all of which learn.

    The values of each weight with several dimensions are permuted at random. So nobody must know how the net's author
    drew them. Normalisations begin as they are, without the statistics that they have collected. Copies do not drop
    units: what they draw would change what the net behind them draws.

    Args:
        modules: they stay as they are.
    """
    copies = copy.deepcopy(list(modules))
    for module in copies:
        for p in module.parameters():
            if p.is_floating_point():
                p.grad = None
                p.requires_grad_()
        with torch.no_grad():
            for p in module.parameters():
                if p.dim() > 1:
                    p.copy_(p.flatten()[torch.randperm(p.numel(), device="cpu").to(p.device)].view(p.shape))
        for part in module.modules():
            if callable(reset := getattr(part, "reset_running_stats", None)):
                reset()
            if isinstance(part, DROPOUTS):
                part.p = 0.0
            elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
                part.dropout = 0.0
        module.train()
    return copies


class Adapter(nn.Module):
    """Brings features to the shape that a layer takes: means over places, and a linear map of the channels.

    A map is averaged to the smaller places; its channels go through a 1x1 convolution. Tokens keep their places. From a
    map or tokens to a vector and back, the channels are averaged over all places first.

    Args:
        given: the shape of the features of one sample.
        wanted: the shape that the layer takes.
        last: True if the channels are on the last axis, as those of tokens are.
    """

    def __init__(self, given: Sequence[int], wanted: Sequence[int], *, last: bool) -> None:
        super().__init__()
        self.wanted = tuple(wanted)
        self.axis = -1 if last else 1
        self.keeps_places = len(given) == len(wanted) > 1
        inputs = given[self.axis if last else 0] if given else 1
        outputs = wanted[-1 if last else 0] if self.keeps_places else prod(wanted)
        same = self.keeps_places and inputs == outputs
        self.linear = nn.Identity() if same else nn.Linear(inputs, outputs, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return features of the wanted shape, [B, ...]."""
        h = h.movedim(self.axis, 1)
        if not self.keeps_places:
            flat: Tensor = self.linear(h.flatten(2).mean(2) if h.dim() > 2 else h)
            return flat.view(len(h), *self.wanted)
        places = self.wanted[:-1] if self.axis == -1 else self.wanted[1:]
        if tuple(h.shape[2:]) != places:
            h = _smaller(h, places)
        out: Tensor = self.linear(h.movedim(1, -1))
        return out if self.axis == -1 else out.movedim(-1, 1)


def _smaller(h: Tensor, places: tuple[int, ...]) -> Tensor:
    """Means of h [B, channels, ...] over windows, as many as there are places."""
    windows = {length // place for length, place in zip(h.shape[2:], places, strict=True)}
    divides = all(length % place == 0 for length, place in zip(h.shape[2:], places, strict=True))
    if h.dim() == 4 and divides and len(windows) == 1:
        return average(h, windows.pop())  # the other way has no deterministic derivative on CUDA
    return F.interpolate(h, size=places, mode="area")
