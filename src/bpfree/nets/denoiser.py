"""The NoProp net: T denoising blocks, after the paper's Figure 6 (https://arxiv.org/abs/2503.24322)."""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice


class Denoiser(nn.Module):
    """T blocks; block t tells the label from the image and a noisy embedding of the label.

    Args:
        in_shape: shape of one sample.
        out_features: D, the number of classes.
        blocks: T.
        backbone: "mlp", or "conv" (the paper's) for images.
        trunk: "own" gives each block a backbone of its own, as in the paper: blocks share nothing. "shared" has one,
            which block 1 owns and trains; the others read its features detached. Several times faster.
        embedding_dim: E; default: D, for one-hot embeddings.
        width: H, of features and hidden layers.
        conv_norm: batch norm after each convolution, which the paper has not.
        dropout: after the convolutions.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        *,
        blocks: int = 10,
        backbone: Literal["mlp", "conv"] = "mlp",
        trunk: Literal["own", "shared"] = "own",
        embedding_dim: int | None = None,
        width: int = 256,
        conv_norm: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_choice("backbone", backbone, ("mlp", "conv"))
        check_choice("trunk", trunk, ("own", "shared"))
        if blocks < 1:
            raise UserError(f"blocks: found {blocks}, allowed: at least 1")
        self.embedding_dim = embedding_dim or out_features

        def new_trunk() -> nn.Module:
            if backbone == "conv":
                return conv_trunk(in_shape, width, conv_norm, dropout)
            return mlp_trunk(in_shape, width)

        self.trunks = nn.ModuleList(new_trunk() for _ in range(blocks if trunk == "own" else 1))
        self.heads = nn.ModuleList(Head(width, self.embedding_dim, out_features) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, D] of the last block, each block reading the class scores of the one before.

        It makes the net an ordinary deep one, so that backprop can train the same architecture. NoProp rules do not
        call it. It needs E = D.
        """
        z = x.new_zeros(len(x), self.embedding_dim)
        features, logits = x, z
        for t, head in enumerate(self.heads):
            features = self.trunks[t](x) if t < len(self.trunks) else features
            logits = head(features, z)
            z = logits.softmax(1)
        return logits


class Head(nn.Module):
    """The part of a block behind the backbone: features [B, H], z [B, E] -> logits [B, D]."""

    def __init__(self, width: int, embedding_dim: int, out_features: int) -> None:
        super().__init__()
        self.embed = _layer(embedding_dim, width)
        self.residual = nn.Sequential(_layer(width, width), nn.Linear(width, width), nn.BatchNorm1d(width))
        self.join = nn.Sequential(
            _layer(2 * width, width), _layer(width, width // 2), nn.Linear(width // 2, out_features)
        )

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        """Logits [B, D]."""
        h = self.embed(z)
        h = h + self.residual(h)
        return self.join(torch.cat([features.to(h.dtype), h], dim=1))  # type: ignore[no-any-return]


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def mlp_trunk(in_shape: Sequence[int], width: int) -> nn.Sequential:
    """Two fully connected layers on the flat sample."""
    return nn.Sequential(nn.Flatten(), _layer(prod(in_shape), width), _layer(width, width))


def conv_trunk(in_shape: Sequence[int], width: int, conv_norm: bool, dropout: float) -> nn.Sequential:
    """The paper's: conv 32, pool, conv 64, conv 128, pool (3x3), dropout, fully connected, batch norm.

    Raises:
        UserError: the input is no image of at least 4x4.
    """
    if len(in_shape) != 3 or min(in_shape[1:]) < 4:
        raise UserError(
            f"backbone: found 'conv' on samples of shape {list(in_shape)}, allowed: [channels, height, width] with at "
            "least 4x4 pixels. Use backbone: mlp"
        )
    channels, height, breadth = in_shape

    def convolution(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if conv_norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU()]

    return nn.Sequential(
        *convolution(channels, 32),
        nn.MaxPool2d(2),
        *convolution(32, 64),
        *convolution(64, 128),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(128 * (height // 4) * (breadth // 4), width),
        nn.BatchNorm1d(width),
    )
