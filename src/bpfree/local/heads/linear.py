"""Heads: small classifiers that belong to a rule and read the features of a segment."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError
from bpfree.local.channels_last import project
from bpfree.local.maps import average
from bpfree.local.segments import Segment

Pixels = tuple[int, int] | None
"""(H, W) of a task with an answer for each pixel; None for a task with an answer for each sample."""


def head_shape(segment: Segment, outputs: int, pixels: Pixels) -> tuple[int, int]:
    """Return rows and columns of a linear head's matrix: [D, values], or [C, channels] if each pixel has an answer.

    Args:
        segment: its output must be a feature map [channels, h, w] if the task has an answer for each pixel.
        outputs: D of the task, which is C*H*W if it has an answer for each pixel.
        pixels: (H, W) of the task, or None.

    Raises:
        UserError: each pixel needs an answer, and the output is not a feature map.
    """
    if pixels is None:
        return outputs, segment.shape.numel()
    if len(segment.shape) != 3:
        raise UserError(
            f"tap '{segment.name}': its output has the shape {list(segment.shape)}, but the task has a label for each "
            "pixel, allowed: a feature map [channels, height, width]. Tap modules that keep the places of pixels, or "
            "use a rule that learns from the output's error, such as dfa"
        )
    return outputs // prod(pixels), segment.shape[0]


def read_linear(h: Tensor, matrix: Tensor, pixels: Pixels) -> Tensor:
    """Return the scores of a linear head without bias: [B, D], or [B, C, H, W] if each pixel has an answer.

    For pixels the head is a 1x1 convolution at the resolution of h. Its scores are interpolated to (H, W).

    Args:
        h: [B, ...]; [B, channels, h, w] per pixel.
        matrix: [D, values], or [C, channels]; see `head_shape`.
        pixels: (H, W) of the task, or None.
    """
    return project(h, matrix) if pixels is None else read_pixels(h, matrix, pixels)


def read_pixels(h: Tensor, matrix: Tensor, pixels: tuple[int, int]) -> Tensor:
    """Return the scores of a 1x1 convolution at the resolution of the labels, [B, C, H, W].

    Args:
        h: [B, channels, h, w].
        matrix: [C, channels].
        pixels: (H, W).
    """
    return to_pixels(F.conv2d(h, matrix[:, :, None, None]), pixels)


def to_pixels(scores: Tensor, pixels: tuple[int, int]) -> Tensor:
    """Interpolate scores bilinearly to the resolution of the labels.

    Args:
        scores: [B, C, h, w].
        pixels: (H, W).

    Returns:
        [B, C, H, W].
    """
    if tuple(scores.shape[2:]) == pixels:
        return scores
    return F.interpolate(scores, size=pixels, mode="bilinear", align_corners=False)


class PixelLinear(nn.Module):
    """A linear layer on the channels of each pixel, [B, channels, h, w] -> [B, C, H, W].

    Args:
        channels: of the feature map.
        classes: C.
        pixels: (H, W), to which the scores are brought bilinearly.
        zero: True to start at zero, False to start as torch draws the weights.
    """

    def __init__(self, channels: int, classes: int, pixels: tuple[int, int], *, zero: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)
        self.pixels = pixels
        if zero:
            for p in self.conv.parameters():
                nn.init.zeros_(p)

    def forward(self, h: Tensor) -> Tensor:
        """Compute the scores of each pixel [B, C, H, W] from features [B, C, h, w]."""
        return to_pixels(self.conv(h), self.pixels)


def pooled_side(shape: Sequence[int], pooled: int) -> tuple[int, int]:
    """Return the side of the windows over which a feature map is averaged, and the number of features after it.

    Args:
        shape: of the features of one sample; features that are not a map keep their number, with a side of 1.
        pooled: features at most; both sides of a map shrink alike until there are no more.
    """
    side, sides = 1, list(shape[1:])
    if len(shape) == 3:
        while shape[0] * prod(-(-length // side) for length in sides) > pooled and side < max(sides):
            side += 1
    return side, shape[0] * prod(-(-length // side) for length in sides)


class PooledLinear(nn.Module):
    """A linear layer behind a feature map averaged to at most `pooled` features; other features it takes as they are.

    It starts at zero, so that the first error it sends back is zero too.

    Args:
        shape: of the features of one sample.
        outputs: D.
        pooled: features at most; both sides of a map shrink alike until there are no more.
    """

    def __init__(self, shape: Sequence[int], outputs: int, pooled: int = 1024) -> None:
        super().__init__()
        side, width = pooled_side(shape, pooled)
        self.side = side if len(shape) == 3 else None
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, ...] -> [B, D]."""
        pooled = h if self.side is None else average(h, self.side)
        return self.linear(pooled.flatten(1))  # type: ignore[no-any-return]
