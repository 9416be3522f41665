"""Functions of feature maps whose values and derivatives take few passes over memory, in 16 bits too."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.grad import as_on_cpu
from bpfree.local.channels_last import lies_channels_last


def std_over_space(h: Tensor) -> Tensor:
    """Return the standard deviation of each channel over space, [B, channels], in float32 or wider.

    Args:
        h: feature maps [B, channels, height, width].
    """
    std: Tensor = _StdOverSpace.apply(h)  # type: ignore[no-untyped-call]
    return std


class _StdOverSpace(torch.autograd.Function):
    """The standard deviation s, with ds/dh = (h - m) / ((n - 1) s) for a mean m of n places, and 0 where s is 0."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        x, places = _by_channel(h)
        if h.itemsize < 4:
            # Sums in float32 over a map in 16 bits; var_mean would round its results, or need a wide copy of the map.
            mean = x.mean(places, keepdim=True, dtype=torch.float32)
            squares = torch.linalg.vector_norm(x, dim=places, keepdim=True, dtype=torch.float32).square()
            n = x.shape[places]
            var = (squares - n * mean.square()).clamp_min(0) / (n - 1)
        else:
            var, mean = torch.var_mean(x, places, keepdim=True)
        std: Tensor = var.sqrt()
        ctx.save_for_backward(h, mean, std)
        return std.squeeze(places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        h, mean, std = ctx.saved_tensors
        x, places = _by_channel(h)
        slope = (grads[0].unsqueeze(places) / ((x.shape[places] - 1) * std)).masked_fill(std == 0, 0)
        error = torch.empty_like(h)
        torch.addcmul(-mean * slope, x, slope, out=_by_channel(error)[0])
        return error


def _by_channel(h: Tensor) -> tuple[Tensor, int]:
    """A map as a view with three axes, and which of them is that of the places."""
    return (h.permute(0, 2, 3, 1).flatten(1, 2), 1) if lies_channels_last(h) else (h.flatten(2), 2)


def mean_square(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the mean of squares over some dimensions, in float32 or wider.

    Args:
        h: of any shape.
        dims: the dimensions.
    """
    mean: Tensor = _MeanSquare.apply(h, dims)  # type: ignore[no-untyped-call]
    return mean


class _MeanSquare(torch.autograd.Function):
    """The mean m of n squares, with dm/dh = 2 h / n."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(h)
        ctx.dims = tuple(d % h.dim() for d in dims)
        ctx.n = prod(h.shape[d] for d in dims)
        wide = torch.float32 if h.itemsize < 4 else h.dtype
        norm: Tensor = torch.linalg.vector_norm(h, dim=dims, dtype=wide)
        return norm.square_().div_(ctx.n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        slope = grads[0] * (2 / ctx.n)
        for d in sorted(ctx.dims):
            slope = slope.unsqueeze(d)
        return torch.mul(h, slope, out=torch.empty_like(h)), None


def average(h: Tensor, side: int) -> Tensor:
    """Return a feature map averaged over windows of side x side; windows at the edge may be smaller.

    Args:
        h: [B, channels, height, width].
        side: of a window.
    """
    height, width = h.shape[2:]
    # On a GPU torch's own kernels look for the windows of each place, which takes longer than to read the map.
    if as_on_cpu(h) or height % side or width % side:
        return F.avg_pool2d(h, side, ceil_mode=True)
    averaged: Tensor = _WindowMeans.apply(h, side)  # type: ignore[no-untyped-call]
    return averaged


class _WindowMeans(torch.autograd.Function):
    """Means over windows that divide the map; the error of a mean goes to all places of its window alike."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, side: int) -> Tensor:
        ctx.side = side
        ctx.shape, ctx.order = h.shape, torch.channels_last if lies_channels_last(h) else torch.contiguous_format
        return _windows(h, side).mean((3, 5))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        error = torch.empty(ctx.shape, dtype=grads[0].dtype, device=grads[0].device, memory_format=ctx.order)
        _windows(error, ctx.side).copy_((grads[0] / ctx.side**2)[:, :, :, None, :, None])
        return error, None


def _windows(h: Tensor, side: int) -> Tensor:
    """[B, channels, height / side, side, width / side, side], a view."""
    b, channels, height, width = h.shape
    return h.view(b, channels, height // side, side, width // side, side)
