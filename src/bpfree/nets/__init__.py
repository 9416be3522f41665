"""Nets on which rules can be tried. Any `nn.Module` works; `NETS` is the table of the nets that a config can name.

Every constructor takes first the shape of one sample and the width of the output, then its own options.
"""

from collections.abc import Callable

from torch import nn

from bpfree.nets.conv import conv
from bpfree.nets.denoiser import Backbone, BlockHead, Denoiser
from bpfree.nets.hard import SpikingMLP, int8_mlp
from bpfree.nets.mixer import mixer
from bpfree.nets.mlp import mlp
from bpfree.nets.recurrent import Recurrent, gru, liquid, lstm
from bpfree.nets.resnet import resnet18, resnet34, resnet50
from bpfree.nets.resnet_cifar import resnet32, resnet110
from bpfree.nets.transformer import Transformer, transformer
from bpfree.nets.vgg import vgg8b
from bpfree.nets.vit import vit

NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "vgg8b": vgg8b,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet32": resnet32,
    "resnet110": resnet110,
    "vit": vit,
    "mixer": mixer,
    "transformer": transformer,
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
    "Transformer",
    "conv",
    "gru",
    "int8_mlp",
    "liquid",
    "lstm",
    "mixer",
    "mlp",
    "resnet18",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet110",
    "transformer",
    "vgg8b",
    "vit",
]
