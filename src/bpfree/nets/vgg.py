"""VGG8B, the convolutional net of local learning.

Nokland & Eidnes 2019, "Training Neural Networks with Local Error Signals", https://arxiv.org/abs/1901.06656

Where we differ: the output layer starts with torch's random weights, and not at zero.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.mlp import ACTIVATIONS, Activation

_PLAN = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")  # the channels of a convolution, or "M" for max-pooling


def vgg8b(
    in_shape: Sequence[int],
    out_features: int,
    *,
    scale: float = 1.0,
    hidden: int = 1024,
    activation: Activation = "leaky_relu",
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a VGG8B: six 3x3 convolutions and a hidden layer, as a Sequential whose stages are the layers.

    Args:
        in_shape: [channels, height, width] of one image of at least 16x16.
        out_features: D.
        scale: the factor of the channels of all convolutions; 1 and 2 in the paper.
        hidden: the width of the fully connected hidden layer.
        activation: a name in ACTIVATIONS. The slope of LeakyReLU is 0.01.
        batch_norm: true for batch norm before each activation.
        dropout: the probability that a channel or hidden unit is dropped behind an activation. The paper has 0.2 for
            CIFAR-10.

    Raises:
        UserError: the samples are not images, or too small to be halved four times.
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_positive("net.scale", scale)
    check_positive("net.hidden", hidden)
    if isinstance(in_shape, int) or len(in_shape) != 3 or min(in_shape[1:]) < 16:
        raise UserError(f"net vgg8b: found samples of shape {in_shape}, allowed: [channels, height, width] >= 16")
    width, height, breadth = in_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    i = 0
    for step in _PLAN:
        if isinstance(step, str):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            height, breadth = height // 2, breadth // 2
            continue
        i, features = i + 1, max(1, round(scale * step))
        layers[f"conv{i}"] = nn.Conv2d(width, features, 3, padding=1)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(features)
        layers[f"act{i}"] = ACTIVATIONS[activation]()
        if dropout:
            layers[f"drop{i}"] = nn.Dropout2d(dropout)
        width = features
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(width * height * breadth, hidden)
    if batch_norm:
        layers["norm"] = nn.BatchNorm1d(hidden)
    layers["act"] = ACTIVATIONS[activation]()
    if dropout:
        layers["drop"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(hidden, out_features)
    return nn.Sequential(layers)
