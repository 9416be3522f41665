"""A small convolutional net for images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.mlp import ACTIVATIONS, Activation


def conv(
    in_shape: Sequence[int],
    out_features: int,
    *,
    channels: Sequence[int] = (32, 64),
    kernel: int = 3,
    hidden: int | None = 128,
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a Sequential of convolutions, each followed by 2x2 max-pooling, and fully connected layers.

    Args:
        in_shape: [channels, height, width] of one image, such as [1, 28, 28] or [3, 32, 32].
        out_features: D.
        channels: the number of channels of each convolution.
        kernel: the width of the convolutions, odd.
        hidden: the width of the fully connected hidden layer; none for a net without a hidden layer.
        activation: a name in ACTIVATIONS.
        batch_norm: true for batch norm after each convolution.
        dropout: the probability that a unit is dropped before the fully connected layers.

    Raises:
        UserError: the samples are not images, or too small to be halved once for each convolution; or kernel is even.
    """
    check_choice("activation", activation, ACTIVATIONS)
    for features in (*channels, *([] if hidden is None else [hidden])):
        check_positive("net.channels, net.hidden", features)
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"net.kernel: found {kernel}, allowed: an odd number, so that images keep their size")
    scale = 2 ** len(channels)
    if isinstance(in_shape, int) or len(in_shape) != 3 or min(in_shape[1:]) < scale:
        raise UserError(f"net conv: found samples of shape {in_shape}, allowed: [channels, height, width] >= {scale}")
    width, height, breadth = in_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, features in enumerate(channels, start=1):
        layers[f"conv{i}"] = nn.Conv2d(width, features, kernel, padding=kernel // 2)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(features)
        layers[f"act{i}"] = ACTIVATIONS[activation]()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        width, height, breadth = features, height // 2, breadth // 2
    layers["flatten"] = nn.Flatten()
    if dropout:
        layers["drop1"] = nn.Dropout(dropout)
    features = width * height * breadth
    if hidden is not None:
        layers["fc1"] = nn.Linear(features, hidden)
        layers["act"] = ACTIVATIONS[activation]()
        if dropout:
            layers["drop2"] = nn.Dropout(dropout)
        features = hidden
    layers["fc2" if hidden else "fc"] = nn.Linear(features, out_features)
    return nn.Sequential(layers)
