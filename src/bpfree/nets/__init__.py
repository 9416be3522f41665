"""Nets on which rules can be tried. Any `nn.Module` works; `NETS` is the table of the nets that a config can name.

Every constructor takes first the shape of one sample and the width of the output, then its own options.
"""

from collections.abc import Callable

from torch import nn

from bpfree.nets.conv import conv
from bpfree.nets.denoiser import Backbone, BlockHead, Denoiser
from bpfree.nets.hard import SpikingMLP, int8_mlp
from bpfree.nets.mlp import mlp
from bpfree.nets.recurrent import Recurrent, gru, liquid, lstm
from bpfree.nets.resnet import resnet18, resnet34, resnet50
from bpfree.nets.vgg import vgg8b

NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "vgg8b": vgg8b,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "gru": gru,
    "lstm": lstm,
    "liquid": liquid,
    "denoiser": Denoiser,
    "int8_mlp": int8_mlp,
    "spiking_mlp": SpikingMLP,
}
"""The nets that a config can name. `bpfree list nets` shows them."""

__all__ = [
    "NETS",
    "Backbone",
    "BlockHead",
    "Denoiser",
    "Recurrent",
    "SpikingMLP",
    "conv",
    "gru",
    "int8_mlp",
    "liquid",
    "lstm",
    "mlp",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg8b",
]
