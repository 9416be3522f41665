"""Nets as people write them, small, with samples that each takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs

B = 6


class Kind(NamedTuple):
    """A net that people have.

    Attributes:
        make: the net.
        x: B samples, in float64 where they are floats.
        classes: C.
        taps: where a local rule cuts it by itself; empty if it cannot.
    """

    make: Callable[[], nn.Module]
    x: Inputs
    classes: int
    taps: tuple[str, ...]


class TutorialCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.MaxPool2d(2)
        self.fc1, self.drop, self.fc2 = nn.Linear(32, 16), nn.Dropout(0.2), nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv2(F.relu(self.conv1(x)))))
        x = x.view(x.size(0), -1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = None
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    """As in torchvision."""

    def __init__(self, width=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(width, width), BasicBlock(width, width))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class TorchTransformer(nn.Module):
    """torch's encoder over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.pos = nn.Linear(8, 12), nn.Parameter(torch.randn(8, 12))
        layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.norm(self.encoder(self.embed(x.squeeze(1)) + self.pos)).mean(1))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h):
        a = self.norm1(h)
        h = h + self.attend(a, a, a, need_weights=False)[0]
        return h + self.mlp(self.norm2(h))


class GPT(nn.Module):
    """Tokens to the next token."""

    def __init__(self, tied=False):
        super().__init__()
        self.emb, self.pos = nn.Embedding(17, 12), nn.Parameter(torch.randn(8, 12))
        self.blocks = nn.ModuleList([Attention(12) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 17, bias=False)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, x):
        h = self.emb(x) + self.pos
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))[:, -1]


def _twice(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    """Here it tells the class of an image, as a mean over pixels."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.mid = _twice(1, 4), _twice(4, 8), _twice(8, 8)
        self.up2, self.up1, self.out, self.pool = _twice(16, 8), _twice(12, 4), nn.Conv2d(4, 10, 1), nn.MaxPool2d(2)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.mid(self.pool(b))
        c = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        c = self.up1(torch.cat([F.interpolate(c, scale_factor=2), a], 1))
        return self.out(c).mean((2, 3))


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(n, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()) for n in (5, 3))
        self.join = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, left, right):
        return self.join(torch.cat([self.a(left), self.b(right)], 1))


class _Output:
    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


class _Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([Attention(12) for _ in range(2)])

    def forward(self, hidden_states):
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return (hidden_states,)


class HuggingFace(nn.Module):
    """Named tensors in, an object with `logits` out; layers are called by keyword."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = nn.Embedding(17, 12), _Encoder()
        self.pooler, self.classifier = nn.Sequential(nn.Linear(12, 12), nn.Tanh()), nn.Linear(12, 4)

    def forward(self, input_ids=None, attention_mask=None):
        h = self.embeddings(input=input_ids) * attention_mask[..., None]
        h = self.encoder(hidden_states=h)[0]
        return _Output(self.classifier(input=self.pooler(input=h[:, 0])), h)


class GRUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.dense, self.fc = nn.GRU(8, 12, batch_first=True), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        h, _ = self.gru(x.squeeze(1))
        return self.fc(self.dense(h[:, -1]).tanh())


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 16))
        self.second, self.out = nn.Linear(16, 12), nn.utils.parametrizations.weight_norm(nn.Linear(12, 10))

    def forward(self, x):
        return self.out(self.second(self.first(x.flatten(1)).tanh()).tanh())


class GroupNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6)
        self.fc = nn.Linear(96, 10)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).relu().flatten(1))


def _block(inputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh())


class Checkpointed(nn.Module):
    """Each block by activation checkpointing, or all in one region."""

    def __init__(self, reentrant=False, in_one=False):
        super().__init__()
        self.blocks = nn.ModuleList(_block(n) for n in (64, 16))
        self.fc = nn.Linear(16, 10)
        self.reentrant, self.in_one = reentrant, in_one

    def forward(self, x):
        x = x.flatten(1)
        if self.in_one:
            x = self._again(lambda h: self.blocks[1](self.blocks[0](h)), x)
        else:
            for block in self.blocks:
                x = self._again(block, x)
        return self.fc(x)

    def _again(self, function, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(function, x, use_reentrant=self.reentrant)


class Plain(Checkpointed):
    """The same without checkpointing."""

    def _again(self, function, x):
        return function(x)


def frozen() -> nn.Module:
    net = ResNet()
    net.layer1.requires_grad_(False)
    return net


def kinds() -> dict[str, Kind]:
    """By name; samples and weights are the same each time."""
    random = torch.Generator().manual_seed(0)
    image, tokens = torch.randn(B, 1, 8, 8, generator=random).double(), torch.randint(17, (B, 8), generator=random)
    left, right = (torch.randn(B, n, generator=random).double() for n in (5, 3))
    named = {"input_ids": tokens, "attention_mask": torch.ones(B, 8).double()}
    resnet = ("relu", "layer1", "layer2")
    return {
        "tutorial cnn": Kind(TutorialCNN, image, 10, ("conv1", "conv2", "fc1")),
        "resnet": Kind(ResNet, image, 10, resnet),
        "unet": Kind(UNet, image, 10, ("down1", "up1")),
        "transformer": Kind(TorchTransformer, image, 10, ("embed", "encoder.layers.0", "encoder.layers.1", "norm")),
        "gpt": Kind(GPT, tokens, 17, ("emb", "blocks.0", "blocks.1", "norm")),
        "tied gpt": Kind(lambda: GPT(tied=True), tokens, 17, ()),
        "two towers": Kind(TwoTowers, (left, right), 4, ("a", "b", "join.1")),
        "hugging face": Kind(HuggingFace, named, 4, ("embeddings", "encoder.layer.0", "encoder", "pooler")),
        "gru": Kind(GRUNet, image, 10, ("gru", "dense")),
        "spectral norm": Kind(Spectral, image, 10, ("first", "second")),
        "group norm": Kind(GroupNorms, image, 10, ("norm1", "norm2")),
        "frozen parts": Kind(frozen, image, 10, resnet),
        "checkpointed": Kind(Checkpointed, image, 10, ("blocks.0", "blocks.1")),
    }


def made(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    return kind.make().double()
