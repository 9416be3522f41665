"""Decoupled greedy learning: each segment learns from the task's loss of a small auxiliary net.

Belilovsky, Eickenberg, Oyallon 2020, "Decoupled Greedy Learning of CNNs", https://arxiv.org/abs/1901.08164

    loss_k = loss(head_k(h_k), y),    the graph is cut between segments, and all of them learn in each step
    head_k = average to a quarter of each side, n x (1x1 convolution, batch norm, ReLU), average to 2x2,
             n x (linear, batch norm, ReLU), linear;    n = 3

This is the head "MLP-SR-aux" of the paper, as in the authors' code, https://github.com/eugenium/DGL. It costs little,
since it works on a sixteenth of the places.

Where we differ: if a side cannot be divided, windows at the edge are smaller; the adaptive pooling of the authors'
code lets windows overlap. Features that are not maps have heads of ours, n x (linear, ReLU) and a linear layer, n = 1.
Tokens are normalised before it, as the net does it, and averaged unless each has an answer. If each pixel has a class,
the convolutions work at the resolution of the map, and a last one gives the scores. The paper's buffers, with which
segments can also learn at different times, are not here.
"""

from math import ceil

from torch import nn

from bpfree.errors import check_positive
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.cut import Taps
from bpfree.local.heads.features import Features
from bpfree.local.heads.linear import PixelLinear, head_shape
from bpfree.types import Batch, Task

_MAP_LAYERS, _OTHER_LAYERS = 3, 1
_MOST_HIDDEN = 256  # units of the hidden layers of a head that is not for maps


class DGL(AuxiliaryRule):
    """The task's loss of each segment, through a small auxiliary net.

    Args:
        layers: n, the number of 1x1 convolutions and that of hidden linear layers. Default: 3 for feature maps, as in
            the paper; 1 for other features.
        width: the units of a hidden linear layer. Default: 4 times the channels of a map, as in the paper; as many as
            other features, but at most 256.
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage of a Sequential or block of another net is a segment.
    """

    def __init__(self, *, layers: int | None = None, width: int | None = None, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        for name, value in (("layers", layers), ("width", width)):
            if value is not None:
                check_positive(name, value)
        self.layers = layers
        self.width = width

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return a new auxiliary net for a hidden segment; see `AuxiliaryRule`."""
        segment = self.segments[index]
        if self.pixels is not None:
            classes, channels = head_shape(segment, task.dim, self.pixels)
            last = PixelLinear(channels, classes, self.pixels, zero=False)
            return nn.Sequential(*_convolutions(channels, self.layers or _MAP_LAYERS), last)
        features = Features.of(net, segment, per_step=self.per_step)
        if features.kind == "map":
            return self._map_head(features, task.dim)
        width = self.width or min(features.channels, _MOST_HIDDEN)
        mlp = _mlp(features.channels, width, task.dim, self.layers or _OTHER_LAYERS, batch_norm=False)
        return nn.Sequential(*features.to_vector(net), *mlp)

    def _map_head(self, features: Features, outputs: int) -> nn.Module:
        """The head of the paper, for maps [channels, h, w]."""
        layers, channels = self.layers or _MAP_LAYERS, features.channels
        to_quarter, sides = _average(features.shape[1:], [ceil(side / 4) for side in features.shape[1:]])
        to_two, sides = _average(sides, [min(2, side) for side in sides])
        inputs = channels * sides[0] * sides[1]
        mlp = _mlp(inputs, self.width or inputs, outputs, layers, batch_norm=True)
        return nn.Sequential(to_quarter, *_convolutions(channels, layers), to_two, nn.Flatten(), *mlp)


def _average(sides: tuple[int, ...], wanted: list[int]) -> tuple[nn.AvgPool2d, tuple[int, ...]]:
    """An average over windows, and the sides (h, w) that it leaves."""
    # Adaptive pooling would have no deterministic derivative on CUDA.
    windows = [ceil(side / want) for side, want in zip(sides, wanted, strict=True)]
    left = tuple(ceil(side / window) for side, window in zip(sides, windows, strict=True))
    return nn.AvgPool2d((windows[0], windows[1]), ceil_mode=True), left


def _convolutions(channels: int, number: int) -> list[nn.Module]:
    """1x1 convolutions, each with batch norm and ReLU."""
    return [
        layer
        for _ in range(number)
        for layer in (nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    ]


def _mlp(inputs: int, width: int, outputs: int, hidden: int, *, batch_norm: bool) -> list[nn.Module]:
    """Hidden linear layers with ReLU, and a linear layer."""
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers.append(nn.Linear(width if i else inputs, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
    return [*layers, nn.Linear(width, outputs)]
