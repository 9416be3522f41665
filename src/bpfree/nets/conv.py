"""A small convolutional net."""

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
    hidden: int = 128,
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """3x3 convolutions, each halved by max-pooling, then one hidden layer, as a Sequential whose stages are the layers.

    Args:
        in_shape: [channels, height, width] of one image, such as [1, 28, 28] or [3, 32, 32].
        out_features: D.
        channels: of each convolution.
        hidden: width of the fully connected hidden layer.
        activation: a name in ACTIVATIONS.
        batch_norm: normalise before each activation.
        dropout: probability of dropping a unit before the fully connected layers.

    Raises:
        UserError: the input is no image, or too small to be halved once per convolution.
    """
    check_choice("activation", activation, ACTIVATIONS)
    for features in (*channels, hidden):
        check_positive("net.channels, net.hidden", features)
    scale = 2 ** len(channels)
    if isinstance(in_shape, int) or len(in_shape) != 3 or min(in_shape[1:]) < scale:
        raise UserError(f"net conv: found samples of shape {in_shape}, allowed: [channels, height, width] >= {scale}")
    width, height, breadth = in_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, features in enumerate(channels, start=1):
        layers[f"conv{i}"] = nn.Conv2d(width, features, 3, padding=1)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(features)
        layers[f"act{i}"] = ACTIVATIONS[activation]()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        width, height, breadth = features, height // 2, breadth // 2
    layers["flatten"] = nn.Flatten()
    if dropout:
        layers["drop1"] = nn.Dropout(dropout)
    layers["fc1"] = nn.Linear(width * height * breadth, hidden)
    layers["act"] = ACTIVATIONS[activation]()
    if dropout:
        layers["drop2"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(hidden, out_features)
    return nn.Sequential(layers)
