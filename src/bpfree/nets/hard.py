"""Nets without derivatives: signs, integers, spikes. Black-box rules can train them, and nothing else here.

A module whose class says `differentiable = False` is refused by every rule that differentiates.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive


class Sign(nn.Module):
    """1 above 0, else -1. The derivative is 0 almost everywhere."""

    differentiable: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


UNIT = 32  # an int8 activation of this size stands for 1


class Quantize(nn.Module):
    """Floats to int8, in steps of 1/32."""

    def forward(self, x: Tensor) -> Tensor:
        """Int8 of the shape of x; what is beyond +-127/32 is cut off."""
        return (x * UNIT).round().clamp(-127, 127).to(torch.int8)


class Int8Linear(nn.Module):
    """A fully connected layer in integers: int8 weights and inputs, int32 sums.

    Weights are kept as float parameters, for optimisers to move, and rounded wherever they are used: an integer stands
    for `step`, so that +-127 are four times the largest weights at the start. Biases are rounded in units of the sums.

    Args:
        in_features: I.
        out_features: O.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.step = 4 * bound / 127
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def int8_weight(self) -> Tensor:
        """[O, I], int8."""
        return (self.weight.detach() / self.step).round().clamp(-127, 127).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """Sums, int32 [B, O], of inputs int8 [B, I]; 1 of them stands for step/32."""
        bias = (self.bias.detach() * (UNIT / self.step)).round().to(torch.int32)
        return integer_product(x, self.int8_weight()) + bias


class Int8ReLU(nn.Module):
    """Sums to the activations of the next layer.

    Args:
        step: what 1 of the weights stands for; rounded to a power of two, by which sums are shifted.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        self.shift = round(-math.log2(step))

    def forward(self, x: Tensor) -> Tensor:
        """Int8 of the shape of x, int32; from 0 to 127."""
        return (x >> self.shift).clamp(0, 127).to(torch.int8)


class Dequantize(nn.Module):
    """Sums to float scores.

    Args:
        step: what 1 of the weights stands for.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Float of the shape of x, int32."""
        return x * (self.step / UNIT)


def int8_mlp(in_shape: int | Sequence[int], out_features: int, *, hidden: Sequence[int] = (32,)) -> nn.Sequential:
    """A multilayer perceptron in integer arithmetic throughout: int8 weights and activations, int32 sums, shifts.

    Args:
        in_shape: shape of one sample, or its number of values.
        out_features: D.
        hidden: width of each hidden layer.
    """
    for features in hidden:
        check_positive("net.hidden", features)
    width = in_shape if isinstance(in_shape, int) else prod(in_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), quantize=Quantize())
    for i, features in enumerate(hidden, start=1):
        layer = Int8Linear(width, features)
        layers[f"fc{i}"], layers[f"act{i}"] = layer, Int8ReLU(layer.step)
        width = features
    layer = Int8Linear(width, out_features)
    layers[f"fc{len(hidden) + 1}"], layers["dequantize"] = layer, Dequantize(layer.step)
    return nn.Sequential(layers)


def integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T in int32 [B, O], of int8 x [B, I] and W [O, I]; exact."""
    if x.device.type == "cpu" and _multiplies_int8_exactly():
        return torch._int_mm(x, weight.T)  # with the processor's instructions for int8
    return (x.double() @ weight.T.double()).to(torch.int32)  # GPUs want other shapes; float64 is exact to 2^53


@cache
def _multiplies_int8_exactly() -> bool:
    """Whether this processor does: without VNNI instructions sums of two products are cut off at 16 bits."""
    x, w = (torch.full((rows, 64), 127, dtype=torch.int8) for rows in (32, 16))
    return bool((torch._int_mm(x, w.T) == 64 * 127**2).all())


class SpikingMLP(nn.Module):
    """A spiking net: leaky integrate-and-fire neurons, read out by how often they fire.

        v <- beta v + W s,    s = 1 if v >= 1 else 0,    v <- v - s

    The samples are a constant current into the first layer; the scores are W times the mean spikes of the last hidden
    layer.

    Args:
        in_shape: shape of one sample, or its number of values.
        out_features: D.
        hidden: neurons of each hidden layer.
        steps: of time.
        beta: what is kept of a membrane's potential from step to step, in [0, 1].
    """

    differentiable: ClassVar[bool] = False

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_features: int,
        *,
        hidden: Sequence[int] = (32,),
        steps: int = 8,
        beta: float = 0.9,
    ) -> None:
        super().__init__()
        for features in hidden:
            check_positive("net.hidden", features)
        check_positive("net.steps", steps)
        if not hidden:
            raise UserError("net.hidden: found none, allowed: the neurons of at least one hidden layer")
        if not 0 <= beta <= 1:
            raise UserError(f"net.beta: found {beta}, allowed: from 0 to 1")
        widths = [in_shape if isinstance(in_shape, int) else prod(in_shape), *hidden, out_features]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.steps = steps
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, D] of samples [B, ...]."""
        first, *between, last = self.layers
        constant = first(x.flatten(1))
        potentials: list[Tensor | float] = [0.0] * (1 + len(between))
        total: Tensor | float = 0.0
        for _ in range(self.steps):
            fired, potentials[0] = self._step(potentials[0], constant)
            for i, layer in enumerate(between, start=1):
                fired, potentials[i] = self._step(potentials[i], layer(fired))
            total = total + fired
        scores: Tensor = last(total / self.steps)
        return scores

    def _step(self, potential: Tensor | float, current: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes and the potential that is left."""
        potential = self.beta * potential + current
        fired = (potential >= 1).to(current.dtype)
        return fired, potential - fired


def without_derivatives(net: nn.Module) -> str | None:
    """Which part of the net says that it has none; None if no part does."""
    for name, module in net.named_modules():
        if not getattr(module, "differentiable", True):
            return f"its {name} ({type(module).__name__})" if name else f"{type(module).__name__}"
    return None
