"""Nets as people write them, small, each with a task on scikit-learn's digits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bpfree.inputs import Inputs

CLASSES, VOCABULARY, LENGTH = 4, 11, 6


class TutorialCNN(nn.Module):
    """The CNN of the PyTorch tutorial: one pool used twice, `view` after the convolutions, functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 1 * 1, 12)
        self.fc2 = nn.Linear(12, 10)
        self.fc3 = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(out)))


class SkipResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.block1 = Block(6)
        self.block2 = Block(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """One level down and up, with the connection across; an answer for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.out = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = F.relu(self.down(x))
        deep = F.relu(self.middle(F.max_pool2d(across, 2)))
        return self.out(torch.cat([across, F.relu(self.up(deep))], 1))


class Transformer(nn.Module):
    """An encoder with a positional parameter, whose output layer is its embedding transposed."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.position = nn.Parameter(torch.randn(1, LENGTH, 8) * 0.1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = None if tied else nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.encoder(self.embed(tokens) + self.position).mean(1)
        return h @ self.embed.weight.T if self.out is None else self.out(h)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.right = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        self.joint = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
        self.out = nn.Linear(8, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.joint(torch.cat([self.left(a), self.right(b)], 1)))


class Output(NamedTuple):
    logits: Tensor
    hidden: Tensor


class HuggingFaceStyle(nn.Module):
    """Takes `input_ids` and `attention_mask`, gives an object with `logits`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.body = nn.Sequential(nn.Linear(8, 12), nn.GELU())
        self.middle = nn.Sequential(nn.Linear(12, 12), nn.GELU())
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        weight = attention_mask.unsqueeze(-1).to(self.embed.weight.dtype)
        h = (self.embed(input_ids) * weight).sum(1) / weight.sum(1)
        h = self.middle(self.body(h))
        return Output(self.classifier(h), h)


class GRUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.middle = nn.Linear(8, 8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.gru(x)
        return self.out(torch.tanh(self.middle(h[:, -1])))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.norm2 = nn.GroupNorm(2, 8)
        self.out = nn.Linear(8 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.out(x.flatten(1))


class Plain(nn.Module):
    """Three layers, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 12)
        self.act = nn.Tanh()
        self.second = nn.Linear(12, 10)
        self.act2 = nn.Tanh()
        self.out = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act2(self.second(self.act(self.first(x)))))


class Spectral(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(self.first)


def compiled() -> nn.Module:
    net = Plain()
    net.compile(backend="eager")
    return net


def frozen() -> nn.Module:
    net = Plain()
    net.first.requires_grad_(False)
    return net


class Checkpointed(nn.Module):
    """Each block is computed again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 12), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(12, 10), nn.Tanh())
        self.out = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x = checkpoint(block, x, use_reentrant=False)
        return self.out(x)


def flat_of(net: nn.Module) -> nn.Sequential:
    """The same layers as a Sequential, with the names kept."""
    twin = nn.Sequential()
    for name in ("first", "act", "second", "act2", "out"):
        twin.add_module(name, getattr(net, name))
    return twin


def tutorial_twin(net: TutorialCNN) -> nn.Sequential:
    twin = nn.Sequential()
    parts = {"conv1": net.conv1, "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2), "conv2": net.conv2, "relu2": nn.ReLU()}
    parts |= {"pool2": nn.MaxPool2d(2), "flat": nn.Flatten(), "fc1": net.fc1, "relu3": nn.ReLU(), "fc2": net.fc2}
    for name, part in {**parts, "relu4": nn.ReLU(), "fc3": net.fc3}.items():
        twin.add_module(name, part)
    return twin


def grouped_twin(net: Grouped) -> nn.Sequential:
    twin = nn.Sequential()
    parts = {"conv1": net.conv1, "norm1": net.norm1, "relu1": nn.ReLU(), "pool": nn.MaxPool2d(2), "conv2": net.conv2}
    for name, part in {**parts, "norm2": net.norm2, "relu2": nn.ReLU(), "flat": nn.Flatten(), "out": net.out}.items():
        twin.add_module(name, part)
    return twin


def checkpointed_twin(net: Checkpointed) -> nn.Sequential:
    twin = nn.Sequential()
    for name in ("first", "second", "out"):
        twin.add_module(name, getattr(net, name))
    return twin


@dataclass
class Case:
    """A net, its samples and its task.

    Attributes:
        make: the net.
        x: samples, for a number of them.
        y: labels likewise.
        task: a name in TASKS, made with `classes`.
        size: of the labels of a sample, where each pixel has one.
        twin: of the same layers, a Sequential that computes the same.
    """

    make: Callable[[], nn.Module]
    x: Callable[[int], Inputs]
    y: Callable[[int], Tensor]
    classes: int = CLASSES
    task: str = "classify"
    size: tuple[int, int] | None = None
    twin: Callable[[nn.Module], nn.Sequential] | None = field(default=None)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [0, 1] and the digits that they show."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)


def _images(n: int) -> Tensor:
    return _digits()[0][:n]


def _rows(n: int) -> Tensor:
    """The ink of each field of four by four."""
    return F.avg_pool2d(_images(n), 2).flatten(1)


def _labels(n: int) -> Tensor:
    return _digits()[1][:n] % CLASSES


def _inks(n: int) -> Tensor:
    """One of four levels of ink for each pixel."""
    return (_images(n)[:, 0] * (CLASSES - 1)).round().long()


def _tokens(n: int) -> Tensor:
    """The ink of six fields, in ten steps."""
    return (_rows(n)[:, 4 : 4 + LENGTH] * (VOCABULARY - 1)).round().long()


def _digit(n: int) -> Tensor:
    return _digits()[1][:n]


CASES: dict[str, Case] = {
    "tutorial cnn": Case(TutorialCNN, _images, _labels, twin=tutorial_twin),
    "resnet with skips": Case(SkipResNet, _images, _labels),
    "u-net": Case(UNet, _images, _inks, task="segment", size=(8, 8)),
    "transformer": Case(Transformer, _tokens, _digit, classes=VOCABULARY),
    "transformer, untied": Case(lambda: Transformer(tied=False), _tokens, _digit, VOCABULARY),
    "two towers": Case(TwoTowers, lambda n: (_rows(n)[:, :5], _rows(n)[:, 5:8]), _labels),
    "hugging face style": Case(
        HuggingFaceStyle,
        lambda n: {"input_ids": _tokens(n), "attention_mask": torch.ones(n, LENGTH, dtype=torch.int64)},
        _labels,
    ),
    "gru": Case(GRUNet, lambda n: _rows(n)[:, :15].reshape(n, 5, 3), _labels),
    "spectral norm": Case(Spectral, _rows, _labels, twin=flat_of),
    "group norm": Case(Grouped, _images, _labels, twin=grouped_twin),
    "compiled": Case(compiled, _rows, _labels, twin=flat_of),
    "frozen": Case(frozen, _rows, _labels, twin=flat_of),
    "checkpointed": Case(Checkpointed, _rows, _labels, twin=checkpointed_twin),
}
