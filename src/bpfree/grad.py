"""Functions that rules share to compute and write `.grad`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bpfree.errors import UserError
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import counts
from bpfree.types import Batch, Task

_LONGEST = 2**31 - 1  # elements, of vectors for the dot product of BLAS


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of modules that take part in training, in order.

    Args:
        modules: nets, rules or heads.
    """
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def first_trainable(net: nn.Module) -> nn.Parameter:
    """Return the first trainable parameter, whose type and device a rule's buffers and heads take.

    Args:
        net: the net to train.

    Raises:
        UserError: the net has no trainable parameter.
    """
    for p in net.parameters():
        if p.requires_grad:
            return p
    raise UserError("net: it has no trainable parameters, allowed: at least one with requires_grad")


def backward(out: Tensor, gradient: Tensor | None = None) -> None:
    """Fill `.grad` from a loss, or from an output and the gradient in it.

    A segment learns inside a hook, so in the middle of the forward pass, where autocast may be on. torch requires that
    backward passes run with autocast off.

    Args:
        out: a loss, 0-d, or an output of any shape. Without a graph nothing happens.
        gradient: the gradient in `out`, of its shape; None for a loss.
    """
    if not out.requires_grad:
        return  # every parameter behind it is frozen
    if torch.is_autocast_enabled(out.device.type):
        with torch.autocast(out.device.type, enabled=False):
            out.backward(gradient)  # type: ignore[no-untyped-call]
    else:
        out.backward(gradient)  # type: ignore[no-untyped-call]


def add_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Add gradients to the `.grad` of parameters.

    Args:
        parameters: the parameters.
        gradients: one for each parameter, of its shape.
    """
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        else:
            p.grad += gradient


def output_error(task: Task, out: Tensor, batch: Batch) -> Tensor:
    """Return the error of the output, E = dLoss/dout; the loss is a mean, so E is already divided by B.

    Args:
        task: gives the loss.
        out: [B, ...], the output of the net.
        batch: the samples and targets.

    Returns:
        [B, D], in float32 if the output is in half precision, which would round the error.
    """
    return loss_and_error(task, out, batch)[1]


def loss_and_error(task: Task, out: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of the output, 0-d and detached, and its error; see `output_error`."""
    leaf = wide(out.detach()).requires_grad_()
    loss = task.loss(leaf, batch)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0].flatten(1)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision, else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def as_on_cpu(tensor: Tensor) -> bool:
    """Return True if a tensor is on a CPU, and no test asks there for what other devices do."""
    return tensor.device.type == "cpu" and not counts(tensor.device)


def product_type(factor: Tensor) -> torch.dtype:
    """Return the type in which a product multiplies a factor now: that of autocast if it is on, else its own.

    Args:
        factor: a tensor of floating numbers.
    """
    kind = factor.device.type
    # Autocast leaves float64 alone.
    if factor.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return factor.dtype


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b, 0-d; on a GPU without writing a * b to memory.

    Args:
        a: of any shape.
        b: of the shape and type of a; it may be expanded.
    """
    if repeated := [d for d in range(b.dim()) if b.stride(d) == 0 and b.shape[d] > 1]:
        for d in repeated:
            b = b.narrow(d, 0, 1)
        return (a.sum(repeated, keepdim=True) * b).sum()
    # On a CPU a dot product can be slower and less exact, since oneDNN computes it as a product of matrices.
    if as_on_cpu(a) or a.numel() > _LONGEST:
        return (a * b).sum()
    order = sorted(range(a.dim()), key=a.stride, reverse=True)  # as a lies in memory, so that no copy is made
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def detach_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Split the arguments of a layer's `forward` for a forward pre-hook that detaches the input.

    The input is the first argument, by place or by name.

    Args:
        args: the arguments by place.
        kwargs: the arguments by name.

    Returns:
        The input as it was, and both kinds of arguments with the input detached.
    """
    if args:
        return args[0], (args[0].detach(), *args[1:]), kwargs
    name = next(iter(kwargs)) if "input" not in kwargs else "input"
    return kwargs[name], args, {**kwargs, name: kwargs[name].detach()}


def used_weight(layer: Any) -> Tensor:
    """Return the weight with which a layer has just computed, detached; for use in its forward hook.

    Args:
        layer: a Linear or a convolution, parametrized or not.
    """
    if isinstance(layer.__dict__["_parameters"].get("weight"), Tensor):
        return layer.weight.detach()  # type: ignore[no-any-return]
    with torch.no_grad():  # a parametrization must not record anything more
        return layer.weight.detach()  # type: ignore[no-any-return]


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a layer at any time, detached.

    Reading the weight under spectral_norm moves the vectors of its power iteration; they are put back.

    Args:
        layer: a Linear or a convolution, parametrized or not.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return used_weight(layer)
    with unchanged_buffers(layer):
        return used_weight(layer)


@contextmanager
def unfused(net: nn.Module) -> Iterator[None]:
    """Make recurrent layers compute step by step inside the context, with products that autograd shows.

    A fused kernel is one node of the graph, in which the products with the weights cannot be seen.

    Args:
        net: nothing happens unless it has a recurrent layer.
    """
    if not any(isinstance(module, nn.RNNBase) for module in net.modules()):
        yield
        return
    before = torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled()
    torch._C._set_cudnn_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before[0])
        torch._C._set_mkldnn_enabled(before[1])


def runs_again() -> bool:
    """Return True if a backward pass runs now, in which activation checkpointing runs modules a second time."""
    return bool(torch._C._current_graph_task_id() != -1)
