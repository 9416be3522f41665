"""Residual nets for CIFAR: three levels of n blocks of two convolutions, 6 n + 2 layers. Each block is a stage.

He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385. As there, a shortcut that has to double the channels adds zeros (option A of the
paper). `shortcut: conv` has a 1x1 convolution in its place (option B), as in many later implementations.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.resnet import Residual, he_init

Shortcut = Literal["pad", "conv"]


def resnet32(
    in_shape: int | Sequence[int], out_features: int, *, width: int = 16, shortcut: Shortcut = "pad"
) -> nn.Sequential:
    """Return the ResNet-32 of CIFAR: 15 residual blocks of two convolutions, as a Sequential whose stages they are.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        width: the number of channels of the first blocks; it doubles twice.
        shortcut: where the number of channels doubles, "pad" adds channels of zeros, as the paper does for CIFAR
            (option A); "conv" has a 1x1 convolution (option B).

    Raises:
        UserError: the samples are not images, or width is not above 0.
    """
    return _resnet(in_shape, out_features, width, 5, shortcut)


def resnet110(
    in_shape: int | Sequence[int], out_features: int, *, width: int = 16, shortcut: Shortcut = "pad"
) -> nn.Sequential:
    """Return the ResNet-110 of CIFAR: 54 residual blocks of two convolutions; options as for `resnet32`.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        width: the number of channels of the first blocks; it doubles twice.
        shortcut: "pad" or "conv"; see `resnet32`.
    """
    return _resnet(in_shape, out_features, width, 18, shortcut)


def _resnet(
    in_shape: int | Sequence[int], out_features: int, width: int, blocks: int, shortcut: Shortcut
) -> nn.Sequential:
    if isinstance(in_shape, int) or len(in_shape) != 3:
        raise UserError(f"net resnet: found samples of shape {in_shape}, allowed: [channels, height, width]")
    check_positive("net.width", width)
    check_choice("net.shortcut", shortcut, ("pad", "conv"))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_shape[0], width, 3, padding=1, bias=False)
    layers["norm"] = nn.BatchNorm2d(width)
    layers["act"] = nn.ReLU()
    inputs = width
    for level in range(3):
        for i in range(blocks):
            outputs, stride = width << level, 2 if level and i == 0 else 1
            name = f"block{level + 1}_{i + 1}"
            layers[name] = Residual(inputs, outputs, stride, bottleneck=False, pad=shortcut == "pad")
            inputs = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, out_features)
    return he_init(nn.Sequential(layers))
