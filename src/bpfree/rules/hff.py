"""Hyperspherical forward-forward: each layer tells the classes apart by prototypes on the unit sphere.

Sarode, Moser, Folz, Raue, Nauen, Frolov, Dengel 2026, "Hyperspherical Forward-Forward with Prototypical
Representations", https://arxiv.org/abs/2605.00082

    h^ = h_l / |h_l|,    p_cm of length 1: M learned prototypes of each class
    z_c = log sum_m exp(s <h^, p_cm>)                                 [B, C], the scores of segment l
    segment l and its prototypes minimise loss(z - s a Y, y),         Y the target, one-hot for classes

The margin a lowers the score of the right class by s a, so h^ must come closer to a prototype of its class than the
other prototypes by that much. Prototypes of other classes are what negative samples are in forward-forward. So there is
one forward pass in a step and one for a prediction, however many classes there are.

The loss is that of the task; so the smoothing of labels is that of the task, too (`task.label_smoothing`).

Where we differ: we could read the paper's abstract. The equations are those of reports about it, and the values of M, s
and a were found on digits. Maps are averaged to `pooled` features before they are compared with prototypes, where the
paper has an auxiliary convolution. The net keeps the output layer it came with, which learns from the features below
it, detached. The next segment sees h_l and not h^.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_positive
from bpfree.local.cut import Taps
from bpfree.local.headed import HeadedRule
from bpfree.local.heads.linear import Pixels, head_shape, pooled_side, to_pixels
from bpfree.local.maps import average
from bpfree.local.reading import Read, ReadingRule
from bpfree.tasks.abilities import ANY_LABELS
from bpfree.types import Batch, Task, classes_of

_SHORTEST = 1e-6  # features of no greater length have no direction


class HFF(ReadingRule, HeadedRule):
    """The task's loss of each segment, by the angles between its features and prototypes of the classes.

    Args:
        prototypes: M, the number of prototypes of each class.
        scale: s, by which cosines are multiplied.
        margin: a, by which the cosine of the right class is lowered, from 0 to below 2.
        pooled: features at most, to which a feature map is averaged before it is compared with prototypes.
        read: where a prediction is read: "net" (its output), "last" (z of the last hidden segment) or "sum" (of all z
            and the output).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = (*ANY_LABELS, "language")

    def __init__(
        self,
        *,
        prototypes: int = 4,
        scale: float = 16.0,
        margin: float = 0.1,
        pooled: int = 1024,
        read: Read = "net",
        taps: Taps = None,
    ) -> None:
        super().__init__(read=read, taps=taps)
        for name, value in (("prototypes", prototypes), ("scale", scale), ("pooled", pooled)):
            check_positive(name, value)
        if not 0 <= margin < 2:
            raise UserError(f"margin: found {margin}, allowed: a number from 0 to below 2, the range of cosines")
        self.prototypes = prototypes
        self.scale = scale
        self.margin = margin
        self.pooled = pooled

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return the prototypes of a hidden segment, drawn at random; see `HeadedRule`."""
        segment = self.segments[index]
        head_shape(segment, task.dim, self.pixels)  # refuses what has no pixels where they are needed
        outputs = classes_of(task) or task.dim
        return Prototypes(tuple(segment.shape), (outputs, self.prototypes), self.pooled, self.pixels)

    def scores(self, index: int, h: Tensor) -> Tensor:
        """Return z, the scores of each class without a margin.

        Args:
            index: number of the segment.
            h: [B, ...], its output.

        Returns:
            [B, C], or [B, C, H, W] if each pixel has a class.
        """
        cosines: Tensor = self.heads[index](h)  # [B, C, M] or [B, C, M, h, w]
        z = torch.logsumexp(self.scale * cosines, dim=2)
        return z if self.pixels is None else to_pixels(z, self.pixels)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the task's loss of z with the margin, 0-d."""
        return self.task_loss(self.with_margin(self.scores(index, h), signal), signal)

    def with_margin(self, z: Tensor, signal: Tensor) -> Tensor:
        """Return z with the scores of the right classes lowered by s a.

        Args:
            z: [B, C], or [B, C, H, W].
            signal: the target, of as many values; or the indices [B] of the right classes.
        """
        by = self.scale * self.margin
        if signal.dim() > 1:
            return z - by * signal.view_as(z)
        right = signal.clamp_min(0)[:, None]  # the label of what does not count may be negative
        return z.scatter_add(1, right, z.new_full(right.shape, -by))


class Prototypes(nn.Module):
    """The cosines between features and the prototypes of each class, in float32 or wider.

    Args:
        shape: of the features of one sample.
        count: C and M.
        pooled: features at most, to which a feature map is averaged.
        pixels: (H, W) if each pixel has a class; then the prototypes are compared with the channels of each place.
    """

    def __init__(self, shape: tuple[int, ...], count: tuple[int, int], pooled: int, pixels: Pixels) -> None:
        super().__init__()
        self.count = count
        self.each_place = pixels is not None
        self.side, width = (1, shape[0]) if self.each_place else pooled_side(shape, pooled)
        self.directions = nn.Parameter(F.normalize(torch.randn(count[0] * count[1], width), dim=1))

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, ...] -> cosines [B, C, M]; maps [B, channels, h, w] -> [B, C, M, h, w] for pixels."""
        p = F.normalize(self.directions, dim=1)
        if self.each_place:
            products = F.conv2d(h, p[:, :, None, None])
        else:
            h = (h if self.side == 1 else average(h, self.side)).flatten(1)
            products = F.linear(h, p)
        wide = torch.float32 if h.itemsize < 4 else h.dtype
        length = torch.linalg.vector_norm(h, dim=1, keepdim=True, dtype=wide)
        inverse = torch.where(length > _SHORTEST, 1 / length.clamp_min(_SHORTEST), 0)
        cosines = products * inverse
        return cosines.view(len(h), *self.count, *cosines.shape[2:])
