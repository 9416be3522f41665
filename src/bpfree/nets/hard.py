"""Nets without derivatives, of signs, integers or spikes. Of the rules of bpfree only black-box rules can train them.

A rule that differentiates refuses a net if one of its modules has the class attribute `differentiable = False`.
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
    """The activation sign(x): 1 above 0, else -1. Its derivative is 0 almost everywhere."""

    differentiable: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Return 1 or -1 for each element of x."""
        # Not x.sign(), which gives a third value: 0 at 0.
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


UNIT = 32  # the int8 activation that represents the number 1


class Quantize(nn.Module):
    """A layer that rounds floats to int8 in steps of 1/32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x in int8; values beyond +-127/32 are clipped."""
        return (x * UNIT).round().clamp(-127, 127).to(torch.int8)


class Int8Linear(nn.Module):
    """A fully connected layer in integers: int8 weights and inputs, int32 sums.

    Weights are stored as float parameters, which optimisers can change by small steps, and are rounded when they are
    used. The integer 1 means `step`, chosen so that +-127 is four times the largest initial weight. Biases are rounded
    in units of the sums.

    Args:
        in_features: I.
        out_features: O.

    Attributes:
        step: the number that the integer weight 1 means.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        # Room for weights to grow to four times their start; beyond it, they are clipped.
        self.step = 4 * bound / 127
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def int8_weight(self) -> Tensor:
        """Return the rounded weights [O, I] in int8."""
        # Not -128: the range is symmetric, so that -w rounds to the negative of w.
        return (self.weight.detach() / self.step).round().clamp(-127, 127).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """Return sums in int32 [B, O] for inputs in int8 [B, I]. The sum 1 means step/32."""
        # A sum of products counts in units of step / UNIT: step from the weight and 1 / UNIT from the input.
        bias = (self.bias.detach() * (UNIT / self.step)).round().to(torch.int32)
        return integer_product(x, self.int8_weight()) + bias


class Int8ReLU(nn.Module):
    """A ReLU that turns int32 sums into the int8 activations of the next layer.

    Args:
        step: the number that the integer weight 1 means. It is rounded to a power of two, so that a shift of bits can
            replace a product with a float.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        # The sum n means n step / UNIT, and the activation a means a / UNIT. So a = n step, about n / 2^shift.
        self.shift = round(-math.log2(step))

    def forward(self, x: Tensor) -> Tensor:
        """Return activations from 0 to 127 in int8 for sums x in int32."""
        # A shift rounds towards minus infinity, also for negative sums. They are 0 after the ReLU anyway.
        return (x >> self.shift).clamp(0, 127).to(torch.int8)


class Dequantize(nn.Module):
    """A layer that turns int32 sums into float scores.

    Args:
        step: the number that the integer weight 1 means.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums x, int32, as floats."""
        return x * (self.step / UNIT)


def int8_mlp(in_shape: int | Sequence[int], out_features: int, *, hidden: Sequence[int] = (32,)) -> nn.Sequential:
    """Return a multilayer perceptron in integer arithmetic: int8 weights and activations, int32 sums, bit shifts.

    Args:
        in_shape: shape of one sample, or its number of values.
        out_features: D.
        hidden: the width of each hidden layer.
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
    """Return x W^T exactly, in int32 [B, O].

    Args:
        x: int8 [B, I].
        weight: W, int8 [O, I].
    """
    if x.device.type == "cpu" and _multiplies_int8_exactly():
        return torch._int_mm(x, weight.T)  # uses the processor's instructions for int8
    # On a GPU _int_mm takes only some shapes. float64 is exact for integers up to 2^53, far above 127^2 I.
    return (x.double() @ weight.T.double()).to(torch.int32)


@cache
def _multiplies_int8_exactly() -> bool:
    """True if torch._int_mm is exact here. Without VNNI instructions, sums of two products are clipped to 16 bits."""
    x, w = (torch.full((rows, 64), 127, dtype=torch.int8) for rows in (32, 16))
    return bool((torch._int_mm(x, w.T) == 64 * 127**2).all())


class SpikingMLP(nn.Module):
    """A spiking net of leaky integrate-and-fire neurons, whose output depends on how often the neurons fire.

        v <- beta v + W s,    s = 1 if v >= 1 else 0,    v <- v - s

    A sample is a constant current into the first layer. The scores are W times the mean spikes of the last hidden
    layer.

    Args:
        in_shape: shape of one sample, or its number of values.
        out_features: D.
        hidden: the number of neurons of each hidden layer.
        steps: the number of time steps.
        beta: the share of a membrane's potential that stays from step to step, in [0, 1].
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
        """Return the scores [B, D] of samples x [B, ...]."""
        first, *between, last = self.layers
        constant = first(x.flatten(1))  # the same current in every step, so it is computed once
        potentials: list[Tensor | float] = [0.0] * (1 + len(between))
        total: Tensor | float = 0.0
        for _ in range(self.steps):
            fired, potentials[0] = self._step(potentials[0], constant)
            for i, layer in enumerate(between, start=1):
                fired, potentials[i] = self._step(potentials[i], layer(fired))
            total = total + fired  # the last layer is linear, so it can be applied once to the mean of the spikes
        scores: Tensor = last(total / self.steps)
        return scores

    def _step(self, potential: Tensor | float, current: Tensor) -> tuple[Tensor, Tensor]:
        """The spikes and the remaining potential of a layer, both [B, H]."""
        potential = self.beta * potential + current
        fired = (potential >= 1).to(current.dtype)
        # Subtracted and not set to 0: what lies above the threshold stays for the next step.
        return fired, potential - fired


def without_derivatives(net: nn.Module) -> str | None:
    """Return a description of a module that declares itself not differentiable; None if there is none.

    Args:
        net: the net.
    """
    for name, module in net.named_modules():
        if not getattr(module, "differentiable", True):
            return f"its {name} ({type(module).__name__})" if name else f"{type(module).__name__}"
    return None
