"""Preprocessing as modules: their numbers are buffers, which move with a module and are traced by torch.export."""

import torch
from torch import Tensor, nn

from bpfree.data.scaling import Scaling
from bpfree.errors import UserError


class Scale(nn.Module):
    """A layer that scales one raw input by (x - mean) / std, as `bpfree.data.scaling.Scaling` does.

    Args:
        scaling: of one input.
        dtype: the floating type of the net.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, scaling: Scaling, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = scaling.shape
        self.raw: torch.dtype = getattr(torch, scaling.dtype)
        self.has_tokens = scaling.has_tokens
        # A column of a table may hold times in seconds, which float32 would round before the mean is subtracted.
        exact = dtype if scaling.columns is None else torch.float64
        plain = set(scaling.mean) == {0.0} and set(scaling.std) == {1.0}
        per_channel = (-1, *[1] * (len(self.shape) - 1)) if len(scaling.mean) > 1 else (1,)  # [C, 1, ...]
        for name, values in (("mean", scaling.mean), ("std", scaling.std)):
            numbers = None if plain or self.has_tokens else torch.tensor(values, dtype=exact).view(per_channel)
            self.register_buffer(name, numbers)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the input of the net for raw samples [B, ...]; tokens stay integers.

        Args:
            x: raw samples.
            dtype: the floating type of the net.

        Raises:
            UserError: samples of another shape than those of training, or no tokens where those were.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"samples have the shape {list(x.shape[1:])}, allowed: {list(self.shape)}, as in training")
        if self.has_tokens:
            if x.is_floating_point():
                raise UserError(f"samples are {x.dtype}, allowed: integers, as in training")
            return x.to(self.raw)
        if self.mean is None or self.std is None:
            return x.to(dtype)
        return ((x.to(self.mean.dtype) - self.mean) / self.std).to(dtype)


class Mask(Scale):
    """An input of bools beside others: bools stay bools, as masks are, and other values are scaled."""

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return bools as they are, and other values as `Scale` does."""
        return x if x.dtype == torch.bool else super().forward(x, dtype)


def scales_of(scaling: Scaling, dtype: torch.dtype) -> dict[str, Scale]:
    """Return the layer of each input by its name; an input that has no name is called "input".

    Args:
        scaling: of all inputs of a net.
        dtype: the floating type of the net.
    """
    if not scaling.inputs:
        return {"input": Scale(scaling, dtype)}
    return {name: (Mask if part.dtype == "bool" else Scale)(part, dtype) for name, part in scaling.inputs}
