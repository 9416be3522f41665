"""Channel-wise competition of classes: forward-forward without negative samples and without labels in the input.

Each class has its own group of channels in every layer, and the groups compete to be the most active. There is no head:
the groups are the classifier. Two rules differ in how they measure a group:

`cwcomp`  Papachristodoulou, Kyrkou, Timotheou, Theocharides 2024, "Convolutional Channel-Wise Competitive Learning for
          the Forward-Forward Algorithm", https://arxiv.org/abs/2312.12668

    G_l [B, C]: mean of squares of h_l over the c-th of C groups of channels, and over space
    segment l minimises loss(G_l, y), the task's cross-entropy with its class weights and label smoothing

`deeper_forward`  Sun, Zhang, He, Wen, Shen, Xie 2025, "DeeperForward: Enhanced Forward-Forward Training for Deeper and
                  Better Performance", ICLR, https://openreview.net/forum?id=kOYnXVQCtA

    G_l [B, C]: mean of h_l over the c-th group and over space
    z_l = (h_l - G_l) / sd_l, group by group;    the next hidden segment sees z_l and not h_l

The mean sends an error to channels that are off, too; the square does not. The mean of z_l is 0 in every group, so the
next layer cannot just read the goodness of this one.

If each pixel has a class, G_l is taken at each pixel, without the mean over space, and interpolated to the labels.

Where we differ: in the papers the number of channels is a multiple of C; here groups are as even as they can be,
neighbours differing by one channel at most. The net's output layer learns from h of the last hidden segment, detached;
in `cwcomp` it is the softmax predictor, and `read: last` and `read: sum` predict by goodness. In `cwcomp` all layers
learn from the first step to the last, where the authors let a layer begin and end at epochs of its own; their
normalisation, pooling and grouped convolutions belong to the net and not to the rule. In `deeper_forward` the sum is
over all hidden segments, where the authors choose the first and the last of them on a validation set, which gained 0.06
points (table 3). Their parameter-free shortcuts and average pooling belong to the net.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError
from bpfree.local.cut import Taps
from bpfree.local.heads.linear import head_shape, to_pixels
from bpfree.local.maps import mean_square
from bpfree.local.reading import Read, ReadingRule
from bpfree.local.segments import channel_axis
from bpfree.types import Batch, Task, classes_of


class CwComp(ReadingRule):
    """Channel-wise competition of classes by the mean of squares of their channels.

    Args:
        read: where a prediction is read: "net" (its output), "last" (goodness of the last hidden segment) or "sum"
            (of all hidden segments).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify", "segment")  # one class wins
    sums_output: ClassVar[bool] = False

    def __init__(self, *, read: Read = "net", taps: Taps = None) -> None:
        super().__init__(read=read, taps=taps)
        self.classes = 0
        self.axes: list[int] = []  # of the channels in each hidden segment's output

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Check that there is a channel for each class.

        Raises:
            UserError: a hidden segment has fewer channels than there are classes, or there is none to read.
        """
        super().bind(net, task, batch)
        self.classes = classes_of(task) or task.dim
        self.axes = [channel_axis(net, segment) for segment in self.segments[:-1]]
        for segment, axis in zip(self.segments, self.axes, strict=False):
            head_shape(segment, task.dim, self.pixels)  # refuses what has no pixels where they are needed
            if (channels := (1, *segment.shape)[axis]) < self.classes:
                raise UserError(
                    f"net: '{segment.name}' has {channels} channels, allowed: at least one for each of the "
                    f"{self.classes} classes. Widen that layer"
                )

    def goodness(self, index: int, h: Tensor) -> Tensor:
        """Return the mean of squares of each class's channels.

        Args:
            index: number of the segment.
            h: [B, channels, ...], or tokens [B, T, channels].

        Returns:
            [B, C], or [B, C, H, W] if each pixel has a class.
        """
        if self.pixels is None and h.dim() > 2:
            squares = mean_square(h, self.places(index, h))  # [B, channels]
            return torch.cat([part.mean(2) for part in even_groups(squares, self.classes)], dim=1)
        groups: Tensor = _GroupMeans.apply(h, self.classes)  # type: ignore[no-untyped-call]
        return groups if self.pixels is None else to_pixels(groups, self.pixels)

    def places(self, index: int, h: Tensor) -> tuple[int, ...]:
        """Return the axes of h but those of the batch and of the channels.

        Args:
            index: number of the segment.
            h: [B, channels, ...], or tokens [B, T, channels].
        """
        axis = self.axes[index] % h.dim()
        return tuple(d for d in range(1, h.dim()) if d != axis)

    def scores(self, index: int, h: Tensor) -> Tensor:
        """Return the goodness G_l, which is the score of each class."""
        return self.goodness(index, h)


class DeeperForward(CwComp):
    """Channel-wise competition of classes by the mean of their channels, which is taken out of the features.

    Args:
        read: where a prediction is read: "net" (its output), "last" (goodness of the last hidden segment) or "sum"
            (of all hidden segments, as in the paper).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    changes_features: ClassVar[bool] = True

    def __init__(self, *, read: Read = "sum", taps: Taps = None) -> None:
        super().__init__(read=read, taps=taps)

    def goodness(self, index: int, h: Tensor) -> Tensor:
        """Return the mean of each class's channels; shapes as in `CwComp.goodness`."""
        wide = torch.float32 if h.itemsize < 4 else h.dtype
        if self.pixels is None and h.dim() > 2:
            h = h.mean(self.places(index, h), dtype=wide)  # [B, channels]
        groups = torch.cat([part.mean(2, dtype=wide) for part in even_groups(h, self.classes)], dim=1)
        return groups if self.pixels is None else to_pixels(groups, self.pixels)

    def pass_on(self, index: int, h: Tensor) -> Tensor:
        """Return z_l: h with mean 0 and standard deviation 1 in each group of each sample; for the output h itself.

        Nothing would be left of a group with a single value. Where there is one, a sample is normalised as a whole.
        """
        if index == len(self.taps) - 1:
            return h
        channels = h.movedim(self.axes[index], 1)  # [B, channels, ...]
        least = channels.shape[1] // self.classes * channels[0, 0].numel()
        parts = even_groups(channels, self.classes if least > 1 else 1)
        z = torch.cat([F.group_norm(part.flatten(1, 2), part.shape[1]) for part in parts], dim=1)
        return z.movedim(1, self.axes[index]).to(h.dtype)


def even_groups(x: Tensor, count: int) -> list[Tensor]:
    """Split channels into groups whose sizes differ by one at most, as views [B, groups of a size, size, ...].

    Args:
        x: [B, channels, ...].
        count: the number of groups.

    Example:
        >>> [part.shape[1:] for part in even_groups(torch.zeros(1, 8), 3)]
        [torch.Size([2, 3]), torch.Size([1, 2])]
    """
    size, larger = divmod(x.shape[1], count)
    end = larger * (size + 1)
    shapes = ((larger, size + 1), (count - larger, size))
    parts = zip((x[:, :end], x[:, end:]), shapes, strict=True)
    return [part.view(x.shape[0], *shape, *x.shape[2:]) for part, shape in parts if shape[0]]


class _GroupMeans(torch.autograd.Function):
    """Means of squares of groups of channels [B, groups, ...], in float32 or wider, without the squares in memory."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(h)
        ctx.count = count
        wide = torch.float32 if h.itemsize < 4 else h.dtype
        parts = even_groups(h, count)
        norms = [torch.linalg.vector_norm(part, dim=2, dtype=wide) for part in parts]
        return torch.cat([norm.square() / part.shape[2] for norm, part in zip(norms, parts, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        error, first = torch.empty_like(h), 0
        for out, part in zip(even_groups(error, ctx.count), even_groups(h, ctx.count), strict=True):
            slope = grads[0][:, first : first + part.shape[1]] * (2 / part.shape[2])
            torch.mul(part, slope.unsqueeze(2), out=out)
            first += part.shape[1]
        return error, None
