"""The multilayer perceptron, and the table of activations."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

from torch import nn

from bpfree.errors import check_choice, check_positive
from bpfree.nets.hard import Sign

Activation = Literal["relu", "tanh", "leaky_relu", "gelu", "silu", "sigmoid", "sign"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "sign": Sign,
}


def mlp(
    in_shape: int | Sequence[int],
    out_features: int,
    *,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a Sequential of fully connected layers on the flat sample; each layer is a stage for local rules.

    Args:
        in_shape: shape of one sample, or its number of values.
        out_features: D.
        hidden: the width of each hidden layer.
        activation: a name in ACTIVATIONS.
        batch_norm: true for batch norm before each activation.
        dropout: the probability that a hidden unit is dropped.
    """
    check_choice("activation", activation, ACTIVATIONS)
    for features in hidden:
        check_positive("net.hidden", features)
    width = in_shape if isinstance(in_shape, int) else prod(in_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, features in enumerate(hidden, start=1):
        layers[f"fc{i}"] = nn.Linear(width, features)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm1d(features)
        layers[f"act{i}"] = ACTIVATIONS[activation]()
        if dropout:
            layers[f"drop{i}"] = nn.Dropout(dropout)
        width = features
    # Names count the layers, so that a pattern such as train.freeze=["fc1.*"] means the same layer for any options.
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, out_features)
    return nn.Sequential(layers)
