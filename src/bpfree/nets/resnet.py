"""Residual nets, each residual block one stage.

He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385

    h <- relu(F(h) + S(h)),    S the identity, or a 1x1 convolution where the shape changes

A cut within a block would be crossed by its shortcut, so blocks are what local rules take as segments: every block is
one child of the Sequential.

Where we differ: the stride of a bottleneck sits in its 3x3 convolution, as everywhere today ("v1.5"); images below 64
pixels meet a 3x3 convolution instead of the 7x7 one with stride and pooling.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from bpfree.errors import UserError, check_positive


class Residual(nn.Module):
    """One residual block.

    Args:
        inputs: channels of h.
        width: channels within; the block gives `expansion` times as many.
        stride: of the block.
        bottleneck: 1x1, 3x3, 1x1 with expansion 4, instead of 3x3, 3x3 with expansion 1.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
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
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)
        self.act = nn.ReLU()

    def forward(self, h: Tensor) -> Tensor:
        """relu(F(h) + S(h)), [B, outputs, height / stride, width / stride]."""
        return self.act(self.body(h) + self.shortcut(h))  # type: ignore[no-any-return]


def expansion(bottleneck: bool) -> int:
    """How many times as many channels a block gives as it has within."""
    return 4 if bottleneck else 1


def resnet18(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """ResNet-18: 8 residual blocks of two convolutions, as a Sequential whose stages are the blocks.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        width: channels of the first blocks; they double three times.

    Raises:
        UserError: the input is no image, or width is not positive.
    """
    return _resnet(in_shape, out_features, width, (2, 2, 2, 2), bottleneck=False)


def resnet34(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """ResNet-34: 16 residual blocks of two convolutions; options as for `resnet18`."""
    return _resnet(in_shape, out_features, width, (3, 4, 6, 3), bottleneck=False)


def resnet50(in_shape: Sequence[int], out_features: int, *, width: int = 64) -> nn.Sequential:
    """ResNet-50: 16 residual blocks of three convolutions; options as for `resnet18`."""
    return _resnet(in_shape, out_features, width, (3, 4, 6, 3), bottleneck=True)


def _resnet(
    in_shape: Sequence[int], out_features: int, width: int, depths: Sequence[int], *, bottleneck: bool
) -> nn.Sequential:
    if isinstance(in_shape, int) or len(in_shape) != 3:
        raise UserError(f"net resnet: found samples of shape {in_shape}, allowed: [channels, height, width]")
    check_positive("net.width", width)
    small = min(in_shape[1:]) < 64
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_shape[0], width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
    layers["norm"] = nn.BatchNorm2d(width)
    layers["act"] = nn.ReLU()
    if not small:
        layers["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    inputs = width
    for level, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if level and i == 0 else 1
            layers[f"block{level + 1}_{i + 1}"] = Residual(inputs, width << level, stride, bottleneck=bottleneck)
            inputs = expansion(bottleneck) * (width << level)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, out_features)
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and normalisation."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            norm=nn.BatchNorm2d(outputs),
        )
    )
