"""Reconstruction: the net is an autoencoder."""

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.data.dataset import Preprocess
from bpfree.errors import UserError, check_choice
from bpfree.tasks.base import DataTask, form_of, widened
from bpfree.types import Batch, Scalars

Output = Literal["sigmoid", "tanh", "linear"]

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda out: out,
}

_MARGIN = 1e-4  # from the ends of g's range, where its inverse is infinite

INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda value: value.clamp(_MARGIN, 1 - _MARGIN).logit(),
    "tanh": lambda value: value.clamp(_MARGIN - 1, 1 - _MARGIN).atanh(),
    "linear": lambda value: value,
}


class Reconstruct(DataTask):
    """Mean squared error between g(out) and the sample itself; its only metric is that loss.

    Args:
        shape: of one sample.
        output: g, a name in OUTPUTS. The net ends in a linear layer; g belongs to the loss.
    """

    name: ClassVar[str] = "reconstruct"
    rebuilds: ClassVar[bool] = True

    def __init__(self, shape: Sequence[int], *, output: Output = "sigmoid") -> None:
        check_choice("output", output, OUTPUTS)
        self.shape = tuple(shape)
        self.output = output

    @classmethod
    def of(cls, data: Preprocess, *, output: Output | Literal["auto"] = "auto") -> "Reconstruct":
        """For the samples of a data set; "auto" is sigmoid for values in [0, 1], tanh in [-1, 1], else linear."""
        if data.has_tokens:
            raise UserError("task: found 'reconstruct' on samples that are tokens, allowed: images or real numbers")
        if output == "auto":
            low, high = data.limits
            bounded: Output = "sigmoid" if low >= 0 else "tanh"
            output = bounded if low >= -1 and high <= 1 else "linear"
        return cls(data.shape, output=output)

    @property
    def dim(self) -> int:
        """Values of a sample."""
        return prod(self.shape)

    def target(self, batch: Batch) -> Tensor:
        """The flat samples [B, D]."""
        return batch.y.flatten(1)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """The output before g, [B, D] or [B, ...].

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
        """Mean squared error of g(out), out [B, D] or [B, ...]."""
        rebuilt = self.activate(out)
        return F.mse_loss(rebuilt.flatten(1), batch.y.flatten(1).to(rebuilt.dtype))

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """`loss`, detached."""
        return {"loss": self.loss(out.detach(), batch)}

    def decode(self, out: Tensor) -> Tensor:
        """The rebuilt samples [N, ...], on the scale of what is to be rebuilt: [0, 1] for images."""
        return self.activate(out).reshape(-1, *self.shape)

    def activate(self, out: Tensor) -> Tensor:
        """g(out), of any shape."""
        return OUTPUTS[self.output](out)

    def deactivate(self, value: Tensor) -> Tensor:
        """The output of which g makes the value; one that g cannot give is moved to the nearest that it can."""
        return INVERSES[self.output](value)
