"""Reconstruction: the net is an autoencoder that rebuilds its samples."""

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.data.preprocess import Preprocess
from bpfree.errors import UserError, check_choice
from bpfree.tasks.base import DataTask, form_of, widened
from bpfree.types import Batch

Output = Literal["sigmoid", "tanh", "linear"]

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda out: out,
}
"""The functions g by name."""

_MARGIN = 1e-4  # distance from the ends of g's range, where its inverse is infinite

INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda value: value.clamp(_MARGIN, 1 - _MARGIN).logit(),
    "tanh": lambda value: value.clamp(_MARGIN - 1, 1 - _MARGIN).atanh(),
    "linear": lambda value: value,
}
"""The inverses of the functions in OUTPUTS; values outside the range of g are clamped."""


class Reconstruct(DataTask):
    """Mean squared error between g(out) and the sample itself. The only metric is this loss.

    Args:
        shape: the shape of one sample.
        output: g, a name in OUTPUTS. The net ends in a linear layer, and g is part of the loss.

    Raises:
        UserError: `output` is not a name in OUTPUTS.
    """

    name: ClassVar[str] = "reconstruct"
    rebuilds: bool = True

    def __init__(self, shape: Sequence[int], *, output: Output = "sigmoid") -> None:
        check_choice("output", output, OUTPUTS)
        self.shape = tuple(shape)
        self.output = output

    @classmethod
    def of(cls, data: Preprocess, *, output: Output | Literal["auto"] = "auto") -> "Reconstruct":
        """Make the task for a data set.

        Args:
            data: the preprocessing of the data set.
            output: g; "auto" is sigmoid for values in [0, 1], tanh for values in [-1, 1], else linear.

        Raises:
            UserError: samples are tokens.
        """
        if data.has_tokens:
            raise UserError("task: found 'reconstruct' on samples that are tokens, allowed: images or real numbers")
        if output == "auto":  # g must reach all values of the samples, and should not reach many others
            low, high = data.limits
            bounded: Output = "sigmoid" if low >= 0 else "tanh"
            output = bounded if low >= -1 and high <= 1 else "linear"
        return cls(data.shape, output=output)

    @property
    def dim(self) -> int:
        """The number of values of a sample, which is the width D of the output."""
        return prod(self.shape)

    def target(self, batch: Batch) -> Tensor:
        """Return the flat samples [B, D]."""
        return batch.y.flatten(1)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the output before g, [B, D] or [B, ...], in float32 or wider.

        Raises:
            UserError: the output has another number of values.
        """
        if not isinstance(out, Tensor) or out.shape[:1] != batch.y.shape[:1] or out[0].numel() != self.dim:
            raise UserError(
                f"net: its output is {form_of(out)}, but samples of shape {list(self.shape)} need "
                f"[{len(batch.y)}, {self.dim}]. End the net with a layer of {self.dim}"
            )
        return widened(out)

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of g(out), for an output [B, D] or [B, ...]."""
        rebuilt = self.activate(out)
        # Both are flat: for [B, D] against [B, C, H, W] torch would broadcast, or fail with an error about shapes.
        return F.mse_loss(rebuilt.flatten(1), batch.y.flatten(1).to(rebuilt.dtype))

    def decode(self, out: Tensor) -> Tensor:
        """Return the rebuilt samples [N, ...], on the scale of the target: [0, 1] for images."""
        return self.activate(out).reshape(-1, *self.shape)

    def activate(self, out: Tensor) -> Tensor:
        """Return g(out), for an output of any shape."""
        return OUTPUTS[self.output](out)

    def deactivate(self, value: Tensor) -> Tensor:
        """Return the output for which g gives the value; a value outside the range of g is clamped first."""
        return INVERSES[self.output](value)
