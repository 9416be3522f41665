"""Channel-wise competitive learning: forward-forward without negative samples.

Papachristodoulou, Kyrkou, Timotheou, Theocharides 2024, "Convolutional Channel-Wise Competitive Learning for the
Forward-Forward Algorithm", https://arxiv.org/abs/2312.12668

    G_l [B, C]: mean of squares of h_l over the c-th of C groups of channels, and over space
    segment l minimises loss(G_l, y), the task's cross-entropy with its class weights and label smoothing

If each pixel has a class, G_l is taken at each pixel, without the mean over space, and interpolated to the labels.

Each class has its own channels in every layer, and they compete to be the most active on its samples. There is no label
in the input and no head: the groups are the classifier.

Where we differ: the paper's number of channels is a multiple of C; here groups are as even as they can be, neighbours
differing by one channel at most. All layers learn from the first step to the last, where the authors let a layer begin
and end at epochs of its own. Their blocks normalise behind the activation and the pooling, and every second convolution
has C groups; both belong to the net and not to the rule. The net's output layer learns from the last features,
detached, and is the paper's softmax predictor; `read: last` is its goodness predictor.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice
from bpfree.inputs import Inputs, forward
from bpfree.local.cut import Taps, cut
from bpfree.local.heads import head_shape, to_pixels
from bpfree.local.maps import mean_square
from bpfree.local.rule import LocalRule
from bpfree.local.segments import channel_axis
from bpfree.types import Batch, Task, classes_of


class CwComp(LocalRule):
    """Channel-wise competition of classes.

    Args:
        read: where a prediction is read: "net" (its output), "last" (goodness of the last hidden segment) or "sum"
            (of all hidden segments).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify", "segment")  # one class wins
    has_heads: ClassVar[bool] = True  # the groups of channels, fixed

    def __init__(self, *, read: Literal["net", "last", "sum"] = "net", taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_choice("read", read, ("net", "last", "sum"))
        self.read = read
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
        if self.read != "net" and len(self.segments) < 2:
            raise UserError(f"read: found '{self.read}', but the net has no hidden segment. Use read: net")

    def goodness(self, index: int, h: Tensor) -> Tensor:
        """Return the mean of squares of each class's channels.

        Args:
            index: number of the segment.
            h: [B, channels, ...], or tokens [B, T, channels].

        Returns:
            [B, C], or [B, C, H, W] if each pixel has a class.
        """
        if self.pixels is None and h.dim() > 2:
            axis = self.axes[index] % h.dim()
            squares = mean_square(h, tuple(d for d in range(1, h.dim()) if d != axis))  # [B, channels]
            return torch.cat([part.mean(2) for part in even_groups(squares, self.classes)], dim=1)
        groups: Tensor = _GroupMeans.apply(h, self.classes)  # type: ignore[no-untyped-call]
        return groups if self.pixels is None else to_pixels(groups, self.pixels)

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """Return the goodness G_l, which is the score of each class."""
        return self.goodness(index, h)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the task's loss of G_l; signal [B, C] is one-hot."""
        return self.task_loss(self.goodness(index, h), signal)

    @property
    def predicts_with_net(self) -> bool:
        """True with `read: net` only."""
        return self.read == "net"

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return scores [B, C] from the place that `read` names."""
        if self.read == "net":
            return super().predict(net, x)
        scores: list[Tensor] = []
        with cut(net, self.taps, lambda index, h: scores.append(self.goodness(index, h))):
            forward(net, x)
        return scores[-1] if self.read == "last" else torch.stack(scores).sum(0)


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
