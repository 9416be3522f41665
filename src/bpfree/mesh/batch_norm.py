"""Batch norm by the statistics of a whole batch whose rows are in several processes.

torch's SyncBatchNorm replaces layers and works on GPUs only. Here the layers stay what they are: within a context,
`batch_norm` itself sees the rows of all processes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bpfree.mesh.share import Share


class SynchronisedNorms(TorchFunctionMode):
    """A context in which batch norm in training mode has the statistics of the whole batch.

    Args:
        share: the rows of this process.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        if func is F.batch_norm:
            call = _Call(*args, **(kwargs or {}))
            if call.training:
                return _normalised(call, self._share)
        return func(*args, **(kwargs or {}))


class _Call(NamedTuple):
    """The arguments of `torch.nn.functional.batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def _normalised(call: _Call, share: Share) -> Tensor:
    """Return the normalised input, and update the running statistics."""
    x = call.input
    out, mean, var, count = _BatchNorm.apply(x, call.weight, call.bias, call.eps, share)  # type: ignore[no-untyped-call]
    if call.running_mean is not None:
        call.running_mean.lerp_(mean.to(call.running_mean.dtype), call.momentum)
    if call.running_var is not None:
        unbiased = var * (count / (count - 1))
        call.running_var.lerp_(unbiased.to(call.running_var.dtype), call.momentum)
    return out  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    """Batch norm over x [b, C, ...] of several processes; the mean, the variance and the count come with it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, share: Share
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = x.numel() // x.shape[1]
        own_mean = wide.mean(dims)
        own_squares = (wide - _along(own_mean, x)).square().sum(dims)
        # Mean and squares around it, and not the sums of x and x^2, whose difference would lose digits.
        each = share.group.gathered(torch.cat([own_mean, own_squares, own_mean.new_tensor([own])]))
        means, squares, counts = each[:, : x.shape[1]], each[:, x.shape[1] : -1], each[:, -1:]
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = (squares + counts * (means - mean).square()).sum(0) / count
        scale = (var + eps).rsqrt()
        normal = (wide - _along(mean, x)) * _along(scale, x)
        out = normal if weight is None else normal * _along(weight.to(wide.dtype), x)
        out = out if bias is None else out + _along(bias.to(wide.dtype), x)
        ctx.save_for_backward(normal, scale, weight, count)
        ctx.save_for_forward(normal, scale, weight, count)
        ctx.share, ctx.kinds = share, (x.dtype, bias is not None)
        ctx.mark_non_differentiable(mean, var, count)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, weight, count = ctx.saved_tensors
        (dtype, has_bias), share = ctx.kinds, ctx.share
        error = grads[0].to(normal.dtype)
        dims = [d for d in range(error.dim()) if d != 1]
        summed, projected = error.sum(dims), (error * normal).sum(dims)
        channels = len(summed)
        # The gradient of the whole batch is the mean of the gradients of the processes, weighted by their rows. So an
        # error counts by the weight of its process, and what goes back is divided by the weight of this one.
        both = share.group.sum_(torch.cat([summed, projected]) * share.weight) / (count * share.weight)
        factor = scale if weight is None else scale * weight.to(scale.dtype)
        back = error - _along(both[:channels], error) - normal * _along(both[channels:], error)
        back = (back * _along(factor, error)).to(dtype)
        own_weight = None if weight is None else projected.to(weight.dtype)
        return back, own_weight, summed.to(weight.dtype) if has_bias and weight is not None else None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        normal, scale, weight, count = ctx.saved_tensors
        moved, moved_weight, moved_bias, *_ = tangents
        out = torch.zeros_like(normal)
        if moved is not None:
            moved = moved.to(normal.dtype)
            dims = [d for d in range(moved.dim()) if d != 1]
            sums = torch.cat([moved.sum(dims), (moved * normal).sum(dims)])
            means = ctx.share.group.sum_(sums) / count
            channels = len(scale)
            out = moved - _along(means[:channels], moved) - normal * _along(means[channels:], moved)
            out = out * _along(scale if weight is None else scale * weight, moved)
        if moved_weight is not None:
            out = out + normal * _along(moved_weight, normal)
        if moved_bias is not None:
            out = out + _along(moved_bias, normal)
        return out.to(ctx.kinds[0]), None, None, None


def _along(values: Tensor, x: Tensor) -> Tensor:
    """The values [C] of channels, for x [B, C, ...]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
