"""Greedy supervised learning: each segment learns from the task's loss of a linear classifier.

Belilovsky, Eickenberg, Oyallon 2019, "Greedy Layerwise Learning Can Scale to ImageNet", https://arxiv.org/abs/1812.11446,
with the linear classifier to which later papers on auxiliary nets compare ("greedy SL" of
https://arxiv.org/abs/2101.10832)

    loss_k = loss(W_k mean(h_k), y),    W_k learned; the graph is cut between segments

The mean is over the places of a feature map. It is the plainest auxiliary net, and so the reference of `dgl`, `infopro`
and `auglocal`. `mono_forward` differs from it by a projection of all values of the map, without a mean.

Where we differ: all segments learn in each step, as in InfoPro's comparison; the first paper trains one after the
other. Features that are not maps have heads of ours. Tokens are normalised as the net does it, and averaged over the
tokens unless each has an answer. A vector has a linear layer, and pixels a 1x1 convolution.
"""

from torch import nn

from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.heads.features import Features
from bpfree.local.heads.linear import PixelLinear, head_shape
from bpfree.types import Batch, Task


class Greedy(AuxiliaryRule):
    """The task's loss of each segment, through a mean over places and a linear classifier.

    Args:
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage of a Sequential or block of another net is a segment.
    """

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return a new linear classifier for a hidden segment; see `AuxiliaryRule`."""
        segment = self.segments[index]
        if self.pixels is not None:
            classes, channels = head_shape(segment, task.dim, self.pixels)
            return PixelLinear(channels, classes, self.pixels, zero=False)
        features = Features.of(net, segment, per_step=self.per_step)
        return nn.Sequential(*features.to_vector(net), nn.Linear(features.channels, task.dim))
