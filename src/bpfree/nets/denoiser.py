"""The NoProp net: denoising blocks after Figure 6 of the paper (https://arxiv.org/abs/2503.24322).

Where we differ: the trunk of a timed block ends in batch norm as every trunk does, because a trunk does not see noise.
The paper sends an embedding that is as large as the image through convolutions; here every z goes through fully
connected layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.resnet import resnet18, resnet34, resnet50
from bpfree.spec import Checked, OptionGroup, Spec

BackboneName = Literal["mlp", "conv", "resnet18", "resnet34", "resnet50"]
_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
_TIME_FEATURES = 64


@dataclass(frozen=True)
class Backbone(OptionGroup):
    """The layers of a trunk, which turn a sample into features.

    Attributes:
        name: "mlp" for any samples; for images also "conv", the paper's net, or a ResNet.
        norm: True for a batch norm after each convolution of "conv". The paper does not have it.
        dropout: the share of zeroed values after the convolutions of "conv".
    """

    name: BackboneName = "mlp"
    norm: bool = False
    dropout: float = 0.2


@dataclass(frozen=True)
class BlockHead(OptionGroup):
    """The form of the heads, which read the features and the noisy embedding z.

    Attributes:
        name: "mlp" as in the paper, or "linear": a linear function of the features plus one of z, so that a head is
            one layer. Default: "linear" with `trunk: local`, where no gradient may pass through several layers.
        norm: batch norm in the heads. Default: True as in the paper, but False with `timed`, because the statistics of
            a single head would mix all levels of noise.
        timed: True if the heads take the time as an input, in the form of sinusoids. Continuous rules need it.
        predicts: "scores" [B, D], or an "embedding" [B, E].
    """

    name: Literal["mlp", "linear"] | None = None
    norm: bool | None = None
    timed: bool = False
    predicts: Literal["scores", "embedding"] = "scores"


class Denoiser(Checked, nn.Module):
    """A net of T blocks; block t predicts the label from the image and a noisy embedding of the label.

    Args:
        in_shape: shape of one sample.
        out_features: D, the number of classes.
        blocks: T; 1 for a continuous rule.
        trunk: "own" gives each block its own trunk, as in the paper: blocks share nothing. "shared": there is one
            trunk, which block 1 owns and trains; the other blocks read its features detached. This is several times
            faster. "local": there is one trunk, each layer of which learns by its own loss; no gradient of any block
            reaches it.
        backbone: the layers of a trunk, see `Backbone`: a name, or `{name: conv, norm: true, dropout: 0.2}`.
        head: the form of the heads, see `BlockHead`: a name, or `{timed: true, predicts: scores}`.
        width: H, the number of features and of units in hidden layers.
        embedding_dim: E. Default: D, for one-hot embeddings.

    Attributes:
        trunks: the trunks, x [B, ...] -> features [B, H]: T of them, or a single one.
        heads: the T heads, (features [B, H], z [B, E]) -> [B, D] or [B, E].

    Raises:
        UserError: an unknown choice, or a backbone that cannot take the samples.
    """

    moved_options: ClassVar[Mapping[str, str]] = {
        "conv_norm": "backbone.norm",
        "dropout": "backbone.dropout",
        "norm": "head.norm",
        "timed": "head.timed",
        "predicts": "head.predicts",
    }

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        *,
        blocks: int = 10,
        trunk: Literal["own", "shared", "local"] = "own",
        backbone: Backbone | Spec = Backbone(),
        head: BlockHead | Spec | None = None,
        width: int = 256,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        backbone, head = Backbone.of(backbone, "net.backbone"), BlockHead.of(head, "net.head")
        check_choice("trunk", trunk, ("own", "shared", "local"))
        check_positive("net.width", width)
        if blocks < 1:
            raise UserError(f"blocks: found {blocks}, allowed: at least 1")
        self.embedding_dim = embedding_dim or out_features
        self.predicts = head.predicts
        self.timed = head.timed
        self.local = trunk == "local"
        linear = (head.name or ("linear" if self.local else "mlp")) == "linear"
        norm = not head.timed if head.norm is None else head.norm
        outputs = out_features if head.predicts == "scores" else self.embedding_dim
        kind = LinearHead if linear else Head
        # The order of these two lines is the order in which weights are drawn; another order would change all results.
        self.trunks = nn.ModuleList(
            _trunk(backbone, in_shape, width, ends_in_relu=linear, in_stages=self.local)
            for _ in range(blocks if trunk == "own" else 1)
        )
        self.heads = nn.ModuleList(
            kind(width, self.embedding_dim, outputs, timed=head.timed, norm=norm) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [B, D] of the last block, where each block reads the softmax of the scores before it.

        With this pass the net is an ordinary deep net, so that backprop can train the same architecture. NoProp rules
        do not call it. With several blocks it needs E = D.

        Args:
            x: samples [B, ...].
        """
        z = x.new_zeros(len(x), self.embedding_dim)  # [B, E], where inference starts without noise
        time = [x.new_zeros(x.shape[0])] if self.timed else []
        # Start values for the type checker: there is at least one block, and block 1 has a trunk.
        features, scores = x, z
        for t, head in enumerate(self.heads):
            features = self.trunks[t](x) if t < len(self.trunks) else features
            scores = head(features, z, *time)
            z = scores.softmax(1)
        return scores


class Head(nn.Module):
    """The part of a block behind the trunk: features [B, H], z [B, E] and perhaps time [B] -> [B, outputs].

    Args:
        width: H.
        embedding_dim: E.
        outputs: the number of scores, or E if the head predicts an embedding.
        timed: True if the head takes the time as an input.
        norm: True for batch norm behind the hidden layers.
    """

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
        """Return scores or an embedding, [B, outputs].

        Args:
            features: [B, H].
            z: noisy embeddings [B, E].
            time: [B] in [0, 1]; needed if the head is timed.
        """
        # Channels are in dimension 1, also where heads are computed side by side (bpfree.diffusion.side_by_side).
        h = self.embed(z)
        h = h + self.residual(h)
        parts = [features.to(h.dtype), h]  # under autocast the trunk may give another type than the head
        if self.clock is not None:
            assert time is not None
            parts.append(self.clock(time).to(h.dtype))
        return self.join(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """A head of one layer: A features + B z + c.

    One layer is enough for Gaussian noise: log p(y|z, x) = log p(y|x) + sqrt(abar)/(1 - abar) u_y . z + terms in y
    alone. This is linear in z, and linear in the features if a linear classifier can read the class from them. A timed
    head scales B z by a function of the time and adds another one to the bias.

    Args:
        width, embedding_dim, outputs, timed: see `Head`.
        norm: ignored; a linear head has no hidden layer.
    """

    # The same arguments as Head, so that Denoiser can make either of them.
    def __init__(self, width: int, embedding_dim: int, outputs: int, *, timed: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.read = nn.Linear(width, outputs)
        # `read` has the bias already.
        self.embed = nn.Linear(embedding_dim, outputs, bias=False)
        self.clock = nn.Sequential(Sinusoids(), nn.Linear(_TIME_FEATURES, 1 + outputs)) if timed else None

    def forward(self, features: Tensor, z: Tensor, time: Tensor | None = None) -> Tensor:
        """Return scores or an embedding, [B, outputs]; see `Head.forward`."""
        if self.clock is None:
            return self.read(features) + self.embed(z)  # type: ignore[no-any-return]
        assert time is not None
        # exp keeps the gain positive: the time scales the weight of z, and never flips its sign.
        gain, bias = self.clock(time).split([1, self.read.out_features], dim=1)
        return self.read(features) + torch.exp(gain) * self.embed(z) + bias  # type: ignore[no-any-return]


class Sinusoids(nn.Module):
    """A layer that turns times [B] in [0, 1] into sines and cosines [B, 64] of frequencies from 1 to 1,000 radians."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        # persistent=False: the numbers are constant, so a checkpoint does not need them.
        self.register_buffer("frequencies", torch.logspace(0, 3, _TIME_FEATURES // 2), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Return the sines and cosines [B, 64] of times [B]."""
        angles = time.unsqueeze(1) * self.frequencies.to(time.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def _layer(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]


def _trunk(
    backbone: Backbone, in_shape: Sequence[int], width: int, *, ends_in_relu: bool, in_stages: bool
) -> nn.Sequential:
    if backbone.name == "conv":
        layers = conv_trunk(in_shape, width, norm=backbone.norm, dropout=backbone.dropout, pool_first=not in_stages)
    elif backbone.name == "mlp":
        layers = mlp_trunk(in_shape, width)
    else:
        layers = _RESNETS[backbone.name](in_shape, width)
    # A linear head on a linear last layer would be linear in the layer before, so that layer would add nothing.
    if ends_in_relu and not isinstance(layers[-1], nn.ReLU):
        layers.append(nn.ReLU())
    return layers


def mlp_trunk(in_shape: Sequence[int], width: int) -> nn.Sequential:
    """Return a trunk of two fully connected layers on the flat sample.

    Args:
        in_shape: shape of one sample.
        width: H.
    """
    # Batch norm is safe for timed blocks, too: a trunk sees no noise, so its statistics do not mix levels of noise.
    return nn.Sequential(nn.Flatten(), *_layer(prod(in_shape), width, True), *_layer(width, width, True))


def conv_trunk(
    in_shape: Sequence[int], width: int, *, norm: bool = False, dropout: float = 0.2, pool_first: bool = False
) -> nn.Sequential:
    """Return the paper's trunk: conv 32, pool, conv 64, conv 128, pool, dropout, fully connected, batch norm.

    Args:
        in_shape: [channels, height, width] of one image.
        width: H.
        norm: True for batch norm after each convolution.
        dropout: the share of zeroed values after the convolutions.
        pool_first: True to pool before the ReLU: the same values and gradients, with a quarter of the work. False
            where each stage learns by itself, by its features before they are pooled.

    Raises:
        UserError: the samples are not images of at least 4x4 pixels.
    """
    if len(in_shape) != 3 or min(in_shape[1:]) < 4:
        raise UserError(
            f"backbone: found 'conv' on samples of shape {list(in_shape)}, allowed: [channels, height, width] with at "
            "least 4x4 pixels. Use backbone: mlp"
        )
    channels, height, breadth = in_shape

    def convolution(inputs: int, outputs: int, *, pool: bool) -> list[nn.Module]:
        norms = [nn.BatchNorm2d(outputs)] if norm else []
        last = [nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norms, *(last[::-1] if pool_first else last)]

    return nn.Sequential(
        *convolution(channels, 32, pool=True),
        *convolution(32, 64, pool=False),
        *convolution(64, 128, pool=True),
        nn.Dropout(dropout),
        Flatten(),
        nn.Linear(128 * (height // 4) * (breadth // 4), width),
        nn.BatchNorm1d(width),
    )


class Flatten(nn.Flatten):
    """A Flatten whose gradient arrives in the memory order of its input, here channels last.

    Pooling and convolutions before it would otherwise copy large maps from one order to the other in the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, ...] as [B, values]."""
        if x.requires_grad and x.dim() == 4 and not x.is_contiguous():
            x.register_hook(lambda error: error.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
        return super().forward(x)
