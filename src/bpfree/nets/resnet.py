"""Residual nets, in which each residual block is a stage for local rules.

He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385

    h <- relu(F(h) + S(h)),    S the identity, or a 1x1 convolution where the shape changes

The shortcut would cross a cut inside a block, so local rules take whole blocks as segments: every block is one child of
the Sequential.

Where we differ: the stride of a bottleneck is in its 3x3 convolution, as is usual today ("v1.5"). Images of less than
64 pixels enter through a 3x3 convolution, instead of a 7x7 convolution with stride and pooling.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_positive


class Residual(nn.Module):
    """A residual block, relu(F(h) + S(h)).

    Args:
        inputs: the number of channels of h.
        width: the number of channels inside. The output has `expansion` times as many.
        stride: the stride of the block; 2 halves height and width.
        bottleneck: True for convolutions 1x1, 3x3, 1x1 with expansion 4; False for 3x3, 3x3 with expansion 1.
        pad: True for a shortcut without parameters where the shape changes; see `PaddedShortcut`.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool, pad: bool = False) -> None:
        super().__init__()
        outputs = expansion(bottleneck) * width
        if bottleneck:
            layers = [
                _conv(inputs, width, 1),
                nn.ReLU(),
                _conv(width, width, 3, stride),
                nn.ReLU(),
                _conv(width, outputs, 1),
            ]
        else:
            layers = [_conv(inputs, width, 3, stride), nn.ReLU(), _conv(width, outputs, 3)]
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = PaddedShortcut(outputs - inputs, stride) if pad else _conv(inputs, outputs, 1, stride)
        self.act = nn.ReLU()

    def forward(self, h: Tensor) -> Tensor:
        """Return relu(F(h) + S(h)), [B, outputs, height / stride, width / stride], for h [B, inputs, height, width]."""
        return self.act(self.body(h) + self.shortcut(h))  # type: ignore[no-any-return]


class PaddedShortcut(nn.Module):
    """A shortcut without parameters, which skips rows and columns and adds channels of zeros (option A of the paper).

    Args:
        added: the number of channels that are added.
        stride: 2 to keep every second row and column.
    """

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added = added
        self.stride = stride

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, channels + added, height / stride, width / stride] for h [B, channels, height, width]."""
        return F.pad(h[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


def expansion(bottleneck: bool) -> int:
    """Return the ratio of a block's output channels to its inner channels."""
    return 4 if bottleneck else 1


def resnet18(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """Return a ResNet-18: 8 residual blocks of two convolutions, as a Sequential whose stages are the blocks.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        width: the number of channels of the first blocks; it doubles three times.

    Raises:
        UserError: the samples are not images, or width is not above 0.
    """
    return _resnet(in_shape, out_features, width, (2, 2, 2, 2), bottleneck=False)


def resnet34(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """Return a ResNet-34: 16 residual blocks of two convolutions; options as for `resnet18`."""
    return _resnet(in_shape, out_features, width, (3, 4, 6, 3), bottleneck=False)


def resnet50(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """Return a ResNet-50: 16 residual blocks of three convolutions; options as for `resnet18`."""
    return _resnet(in_shape, out_features, width, (3, 4, 6, 3), bottleneck=True)


def _resnet(
    in_shape: Sequence[int], out_features: int, width: int, depths: Sequence[int], *, bottleneck: bool
) -> nn.Sequential:
    if isinstance(in_shape, int) or len(in_shape) != 3:
        raise UserError(f"net resnet: found samples of shape {in_shape}, allowed: [channels, height, width]")
    check_positive("net.width", width)
    small = min(in_shape[1:]) < 64  # the usual stem would leave 8x8 pixels of a CIFAR image before the first block
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    # No bias: batch norm subtracts the mean, and with it any bias.
    layers["conv"] = nn.Conv2d(in_shape[0], width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
    layers["norm"] = nn.BatchNorm2d(width)
    layers["act"] = nn.ReLU()
    if not small:
        layers["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    inputs = width
    for level, depth in enumerate(depths):
        for i in range(depth):
            # The first level keeps the size, since the stem has reduced it already, or the images are small.
            stride = 2 if level and i == 0 else 1
            layers[f"block{level + 1}_{i + 1}"] = Residual(inputs, width << level, stride, bottleneck=bottleneck)
            inputs = expansion(bottleneck) * (width << level)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, out_features)
    return he_init(nn.Sequential(layers))


def he_init(net: nn.Sequential) -> nn.Sequential:
    """Return the net with He's initial weights for ReLU in its convolutions, as in the paper.

    Args:
        net: it is changed in place.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution followed by batch norm."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            norm=nn.BatchNorm2d(outputs),
        )
    )
