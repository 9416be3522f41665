"""A layer that cuts images into square patches and gives each patch its features."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.nets.blocks import dropout_layer


class Patches(nn.Module):
    """A layer [B, C, height, width] -> [B, N, H] of N patches, as one convolution whose stride is its size.

    Local rules cut behind blocks: the patches belong to the first block.

    Args:
        in_shape: [channels, height, width] of one image.
        patch: the side of a patch in pixels. It divides height and width.
        width: H, the number of features of each patch.

    Attributes:
        count: N.

    Raises:
        UserError: the samples are not images, or patches do not divide them.
    """

    joins_next_stage: ClassVar[bool] = True

    def __init__(self, in_shape: int | Sequence[int], patch: int, width: int) -> None:
        super().__init__()
        if isinstance(in_shape, int) or len(in_shape) != 3:
            raise UserError(
                f"net: found samples of shape {in_shape}, allowed in a net of patches: [channels, height, width]"
            )
        check_positive("net.width", width)
        if patch < 1 or in_shape[1] % patch or in_shape[2] % patch:
            raise UserError(
                f"net.patch: found {patch}, allowed: a divisor of the height and the width of the images, "
                f"{in_shape[1]} and {in_shape[2]}"
            )
        self.count = (in_shape[1] // patch) * (in_shape[2] // patch)
        self.conv = nn.Conv2d(in_shape[0], width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the patches [B, N, H], row by row."""
        h: Tensor = self.conv(x)  # [B, H, height / patch, width / patch]
        return h.flatten(2).transpose(1, 2)


class PlacedPatches(Patches):
    """Patches with a learned vector of each place, behind a class token if there is one.

    Args:
        in_shape: [channels, height, width] of one image.
        patch: the side of a patch in pixels.
        width: H.
        class_token: True for a learned token before the patches.
        dropout: the probability that a feature of the sum is dropped.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        patch: int,
        width: int,
        *,
        class_token: bool,
        dropout: float,
    ) -> None:
        super().__init__(in_shape, patch, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, self.count + class_token, width) * 0.02)
        self.drop = dropout_layer(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the patches [B, N, H], or [B, 1 + N, H] with a class token."""
        h = super().forward(x)
        if self.token is not None:
            h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)
        out: Tensor = self.drop(h + self.positions)
        return out
