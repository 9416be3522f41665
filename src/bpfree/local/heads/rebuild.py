"""Decoders: auxiliary nets that rebuild the samples of a batch from the features of a segment."""

from abc import abstractmethod
from collections.abc import Sequence
from math import isqrt, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs, main_input
from bpfree.local.heads.features import Features, norm_of
from bpfree.tasks.base import widened
from bpfree.tasks.cross_entropy import summed_cross_entropy

_NOTHING = -100  # an index that no token has


class Decoder(nn.Module):
    """A net that rebuilds samples from features, and its loss."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    @abstractmethod
    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the loss of what is rebuilt, 0-d, a mean over samples and their values.

        Args:
            h: features [B, ...].
            x: the samples [B, ...].
        """


class ImageDecoder(Decoder):
    """Rebuilds images; the loss is the binary cross-entropy of each value, brought to [0, 1].

    Args:
        layers: features -> logits with as many values as an image.
        x: images [B, channels, height, width]. Their lowest and highest value in each channel become 0 and 1.
    """

    low: Tensor
    width: Tensor

    def __init__(self, layers: nn.Module, x: Tensor) -> None:
        super().__init__(layers)
        low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
        self.register_buffer("low", low)
        self.register_buffer("width", torch.where(high > low, high - low, 1.0))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the binary cross-entropy; see `Decoder`."""
        logits = widened(self.layers(h)).view_as(x)
        image = ((x - self.low) / self.width).clamp(0, 1).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, image)


class NumberDecoder(Decoder):
    """Rebuilds numbers; the loss is the mean squared error."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the mean squared error; see `Decoder`."""
        rebuilt = widened(self.layers(h)).view_as(x)
        return F.mse_loss(rebuilt, x.to(rebuilt.dtype))


class TokenDecoder(Decoder):
    """Rebuilds tokens; the loss is the mean cross-entropy of the token at each step.

    From one vector of a sample it rebuilds which tokens there are, without their order.
    """

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the mean cross-entropy of the tokens; see `Decoder`."""
        logits = self.layers(h)
        if logits.dim() == 2:
            logits = logits[:, None].expand(-1, x.shape[1], -1)
        return summed_cross_entropy(logits.flatten(0, 1), x.flatten(), _NOTHING) / x.numel()


def decoder_for(net: nn.Module, features: Features, inputs: Inputs, channels: int) -> Decoder:
    """Return a new decoder for a segment.

    Args:
        net: the net that was cut.
        features: the form of the segment's output.
        inputs: a first batch of samples.
        channels: the number of channels inside a decoder of images.
    """
    x = main_input(inputs)
    keeps_steps = features.kind == "steps" or (features.kind == "tokens" and features.shape[:1] == x.shape[1:2])
    if not x.is_floating_point() and x.dim() == 2:
        values = _vocabulary(net, x)
        return TokenDecoder(_at_each_step(net, features, values) if keeps_steps else _at_once(net, features, values))
    if x.dim() == 4 and features.kind != "steps":
        return ImageDecoder(_image_layers(net, features, x, channels), x)
    if keeps_steps:
        return NumberDecoder(_at_each_step(net, features, prod(x.shape[2:])))
    return NumberDecoder(_at_once(net, features, prod(x.shape[1:])))


def _at_once(net: nn.Module, features: Features, values: int) -> nn.Module:
    """Layers that read values of the whole sample, [B, ...] -> [B, values]."""
    return nn.Sequential(*features.to_vector(net), nn.Linear(features.channels, values))


def _at_each_step(net: nn.Module, features: Features, values: int) -> nn.Module:
    """Layers that read values at each step, [B, T, ...] -> [B, T, values]."""
    return nn.Sequential(nn.Flatten(2), norm_of(net, features.channels), nn.Linear(features.channels, values))


def _vocabulary(net: nn.Module, x: Tensor) -> int:
    """The number of tokens that the net knows: those of its first embedding."""
    tables = (module.num_embeddings for module in net.modules() if isinstance(module, nn.Embedding))
    return next(tables, int(x.max()) + 1)


def _image_layers(net: nn.Module, features: Features, x: Tensor, channels: int) -> nn.Module:
    """Layers from features to the logits of images."""
    if features.kind == "map":
        return _convolutions(features.shape, x, channels)
    if features.kind == "tokens":
        side = isqrt(features.shape[0])
        if side * side in (features.shape[0], features.shape[0] - 1):  # patches, perhaps behind a class token
            return nn.Sequential(Patchwork(side), _convolutions((features.channels, side, side), x, channels))
    return _at_once(net, features, prod(x.shape[1:]))


def _convolutions(shape: Sequence[int], x: Tensor, channels: int) -> nn.Module:
    """The decoder of InfoPro for maps, without the sigmoid, which is in the loss."""
    size = (x.shape[2], x.shape[3])
    has_size = tuple(shape[1:]) == size
    return nn.Sequential(
        nn.Identity() if has_size else nn.Upsample(size=size, mode="bilinear", align_corners=True),
        nn.Conv2d(shape[0], channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, x.shape[1], 3, padding=1),
    )


class Patchwork(nn.Module):
    """The tokens of the patches of an image as a map, [B, N, H] -> [B, H, side, side]; other tokens are left out.

    Args:
        side: the number of patches in a row; the patches are the last side * side tokens.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, h: Tensor) -> Tensor:
        """Return the patches as a map, [B, H, side, side]."""
        patches = h[:, -self.side * self.side :].transpose(1, 2)
        return patches.reshape(len(h), -1, self.side, self.side)
