"""The NoProp net: denoising blocks after the paper's Figure 6 (https://arxiv.org/abs/2503.24322).

Where we differ: the trunk of a timed block ends in batch norm like that of any other, since it sees no noise; the paper
sends an embedding that is as large as the image through convolutions, here every z goes through fully connected layers.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.resnet import resnet18, resnet34, resnet50

Backbone = Literal["mlp", "conv", "resnet18", "resnet34", "resnet50"]
_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
_TIME_FEATURES = 64


class Denoiser(nn.Module):
    """T blocks; block t tells the label from the image and a noisy embedding of the label.

    Args:
        in_shape: shape of one sample.
        out_features: D, the number of classes.
        blocks: T; 1 for a continuous rule.
        backbone: "mlp", or for images "conv" (the paper's) or a ResNet.
        trunk: "own" gives each block a backbone of its own, as in the paper: blocks share nothing. "shared" has one,
            which block 1 owns and trains; the others read its features detached. Several times faster. "local" has one
            of which each layer learns by a loss of its own, no block at all reaching into it.
        head: "mlp", the paper's; "linear" adds a linear function of the features to one of z, so that a head is one
            layer. Default: linear with `trunk: local`, where nothing is to be differentiated through several layers.
        embedding_dim: E; default: D, for one-hot embeddings.
        predicts: "scores" [B, D], or an "embedding" [B, E].
        timed: the heads read the time, as sinusoids; for continuous rules.
        width: H, of features and hidden layers.
        norm: batch norm in the heads; default: unless timed, as in the paper, since statistics of a single head would
            mix levels of noise.
        conv_norm: batch norm after each convolution, which the paper has not.
        dropout: after the convolutions.

    Raises:
        UserError: a choice that is none, or a backbone that cannot take the samples.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        *,
        blocks: int = 10,
        backbone: Backbone = "mlp",
        trunk: Literal["own", "shared", "local"] = "own",
        head: Literal["mlp", "linear"] | None = None,
        embedding_dim: int | None = None,
        predicts: Literal["scores", "embedding"] = "scores",
        timed: bool = False,
        width: int = 256,
        norm: bool | None = None,
        conv_norm: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_choice("backbone", backbone, ("mlp", "conv", *_RESNETS))
        check_choice("trunk", trunk, ("own", "shared", "local"))
        check_choice("predicts", predicts, ("scores", "embedding"))
        check_choice("head", head or "mlp", ("mlp", "linear"))
        check_positive("net.width", width)
        if blocks < 1:
            raise UserError(f"blocks: found {blocks}, allowed: at least 1")
        self.embedding_dim = embedding_dim or out_features
        self.predicts = predicts
        self.timed = timed
        self.local = trunk == "local"
        head = head or ("linear" if self.local else "mlp")
        norm = not timed if norm is None else norm
        outputs = out_features if predicts == "scores" else self.embedding_dim

        def new_trunk() -> nn.Sequential:
            if backbone == "conv":
                layers = conv_trunk(in_shape, width, conv_norm=conv_norm, dropout=dropout)
            elif backbone == "mlp":
                layers = mlp_trunk(in_shape, width)
            else:
                layers = _RESNETS[backbone](in_shape, width)
            if head == "linear" and not isinstance(layers[-1], nn.ReLU):  # else it would be linear in the layer before
                layers.append(nn.ReLU())
            return layers

        make = LinearHead if head == "linear" else Head
        self.trunks = nn.ModuleList(new_trunk() for _ in range(blocks if trunk == "own" else 1))
        self.heads = nn.ModuleList(
            make(width, self.embedding_dim, outputs, timed=timed, norm=norm) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, D] of the last block, each block reading the class scores of the one before.

        It makes the net an ordinary deep one, so that backprop can train the same architecture. NoProp rules do not
        call it. With several blocks it needs E = D.
        """
        z = x.new_zeros(len(x), self.embedding_dim)
        time = [x.new_zeros(len(x))] if self.timed else []
        features, scores = x, z
        for t, head in enumerate(self.heads):
            features = self.trunks[t](x) if t < len(self.trunks) else features
            scores = head(features, z, *time)
            z = scores.softmax(1)
        return scores


class Head(nn.Module):
    """The part of a block behind the backbone: features [B, H], z [B, E] and perhaps time [B] -> [B, outputs]."""

    def __init__(self, width: int, embedding_dim: int, outputs: int, *, timed: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.embed = nn.Sequential(*_layer(embedding_dim, width, norm))
        last = [nn.BatchNorm1d(width)] if norm else []
        self.residual = nn.Sequential(*_layer(width, width, norm), nn.Linear(width, width), *last)
        self.clock = nn.Sequential(Sinusoids(), *_layer(_TIME_FEATURES, width, norm)) if timed else None
        joined = (3 if timed else 2) * width
        self.join = nn.Sequential(
            *_layer(joined, width, norm), *_layer(width, width // 2, norm), nn.Linear(width // 2, outputs)
        )

    def forward(self, features: Tensor, z: Tensor, time: Tensor | None = None) -> Tensor:
        """Scores or estimates."""
        h = self.embed(z)
        h = h + self.residual(h)
        parts = [features.to(h.dtype), h]
        if self.clock is not None:
            assert time is not None
            parts.append(self.clock(time).to(h.dtype))
        return self.join(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """A head of one layer: A features + B z + c.

    It is enough for Gaussian noise: log p(y|z, x) = log p(y|x) + sqrt(abar)/(1 - abar) u_y . z + terms in y alone,
    which is linear in z, and linear in the features as far as those are what a linear classifier reads. With time, the
    weight of z and the bias are functions of it.
    """

    def __init__(self, width: int, embedding_dim: int, outputs: int, *, timed: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.read = nn.Linear(width, outputs)
        self.embed = nn.Linear(embedding_dim, outputs, bias=False)
        self.clock = nn.Sequential(Sinusoids(), nn.Linear(_TIME_FEATURES, 1 + outputs)) if timed else None

    def forward(self, features: Tensor, z: Tensor, time: Tensor | None = None) -> Tensor:
        """Scores or estimates."""
        if self.clock is None:
            return self.read(features) + self.embed(z)  # type: ignore[no-any-return]
        assert time is not None
        gain, bias = self.clock(time).split([1, self.read.out_features], dim=1)
        return self.read(features) + torch.exp(gain) * self.embed(z) + bias  # type: ignore[no-any-return]


class Sinusoids(nn.Module):
    """Times [B] in [0, 1] as sines and cosines [B, 64] of frequencies from 1 to 1,000 in radians."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 3, _TIME_FEATURES // 2), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """See the class."""
        angles = time.unsqueeze(1) * self.frequencies.to(time.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def _layer(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]


def mlp_trunk(in_shape: Sequence[int], width: int) -> nn.Sequential:
    """Two fully connected layers on the flat sample."""
    return nn.Sequential(nn.Flatten(), *_layer(prod(in_shape), width, True), *_layer(width, width, True))


def conv_trunk(in_shape: Sequence[int], width: int, *, conv_norm: bool = False, dropout: float = 0.2) -> nn.Sequential:
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
        norms = [nn.BatchNorm2d(outputs)] if conv_norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norms, nn.ReLU()]

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
