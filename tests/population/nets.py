"""Nets with state, noise, frozen parts and parametrizations, for tests of black-box rules."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from bpfree import Noise
from tests.helpers import TASK, gradients, zero_grad


class Leaky(nn.Module):
    """A neuron without parameters, whose state the net resets."""

    m = 0.0

    def forward(self, x):
        self.m = 0.9 * self.m + x
        return torch.tanh(self.m)


class Spiking(nn.Module):
    """Frozen layers that run eight times on the same input."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(64, 12), Leaky(), nn.Linear(12, 10)
        self.fc1.requires_grad_(False)

    def forward(self, x):
        self.lif.m = 0.0
        return sum(self.fc2(self.lif(self.fc1(x.flatten(1)))) for _ in range(8))


class Noisy(nn.Module):
    """Draws numbers in forward, in evaluation too."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.fc1, self.fc2 = kind, nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, x):
        h = x.flatten(1)
        if self.kind == "input":
            h = h + 5 * torch.randn_like(h)
        h = torch.tanh(self.fc1(h))
        if self.kind == "hidden":
            h = h + torch.randn_like(h)
        if self.kind == "dropout":
            h = F.dropout(h, 0.5, training=True)
        return self.fc2(h)


class FrozenNoise(nn.Sequential):
    """A frozen part that draws numbers, before another that does."""

    def __init__(self):
        super().__init__(Noisy("hidden"), nn.Linear(10, 20), Noisy("none"))
        self[0].requires_grad_(False)
        self[2] = nn.Sequential(nn.Linear(20, 10), nn.Tanh())

    def forward(self, x):
        h = self[1](self[0](x))
        return self[2](h + torch.randn_like(h))


class Average(nn.Module):
    """Divides by a mean size that it learns in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.size.mul_(0.5).add_(0.5 * x.detach().square().mean().sqrt())
        return x / self.size


class Counter(nn.Module):
    """Its buffer changes in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Kept(nn.Module):
    """Its attribute lasts from one call to the next."""

    last = None

    def forward(self, x):
        if self.last is not None:
            x = x + 0.3 * self.last.mean()
        self.last = x.detach()
        return x


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 2, 3), nn.Linear(72, 12), nn.Linear(12, 10)

    def forward(self, x):
        h = self.conv(input=x).flatten(1)
        return self.fc2(input=torch.tanh(self.fc1(input=h)))


class Adapter(nn.Module):
    """A frozen part whose input depends on what is trained, and one that reads a trained weight."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.body, self.fc, self.tail = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.reader = Reader([self.fc])  # right behind what is kept
        for part in (self.body, self.tail):
            part.requires_grad_(False)

    def forward(self, x):
        h = self.body(self.flat(x))
        return self.tail(torch.tanh(self.fc(h)) + self.reader(h))


class Reader(nn.Module):
    def __init__(self, others):
        super().__init__()
        self.others = others

    def forward(self, x):
        return x * self.others[0].weight.mean()


def sequence(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


def old_norm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return sequence(getattr(nn.utils, name)(nn.Linear(64, 12)), nn.Tanh(), nn.Linear(12, 10))


def compiled():
    net = sequence(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    net.compile(backend="eager")
    return net


def wrapped():
    return torch.compile(sequence(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)), backend="eager")


NETS = {
    "spiking": Spiking,
    "input noise": lambda: Noisy("input"),
    "hidden noise": lambda: Noisy("hidden"),
    "functional dropout": lambda: Noisy("dropout"),
    "frozen noise": FrozenNoise,
    "spectral norm": lambda: sequence(
        parametrizations.spectral_norm(nn.Linear(64, 12)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(12, 10))
    ),
    "weight norm": lambda: sequence(parametrizations.weight_norm(nn.Linear(64, 12)), nn.Tanh(), nn.Linear(12, 10)),
    "orthogonal": lambda: sequence(parametrizations.orthogonal(nn.Linear(64, 12)), nn.Tanh(), nn.Linear(12, 10)),
    "old spectral norm": lambda: old_norm("spectral_norm"),
    "old weight norm": lambda: old_norm("weight_norm"),
    "average": lambda: sequence(nn.Linear(64, 12), Average(), nn.Tanh(), nn.Linear(12, 10)),
    "counter": lambda: sequence(nn.Linear(64, 12), Counter(), nn.Tanh(), nn.Linear(12, 10)),
    "kept": lambda: sequence(nn.Linear(64, 12), Kept(), nn.Tanh(), nn.Linear(12, 10)),
    "batch norm": lambda: sequence(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 10)),
    "keywords": ByKeyword,
    "adapter": Adapter,
    "compiled": compiled,
    "wrapped": wrapped,
}


def make(kind, batch):
    torch.manual_seed(0)
    return NETS[kind]().to(batch.x)


def step_of(rule, net, batch, step=0):
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, step))
    return {name.rpartition("_orig_mod.")[2]: g for name, g in gradients(net).items()}


def flat(named):
    return torch.cat([value.flatten() for value in named.values()])
