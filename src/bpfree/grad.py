"""What rules have in common when they write `.grad`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bpfree.errors import UserError
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.types import Batch, Task


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    """The parameters of the modules that take part in training, in order."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def first_trainable(net: nn.Module) -> nn.Parameter:
    """The parameter whose type and device buffers and heads take.

    Raises:
        UserError: the net has none.
    """
    for p in net.parameters():
        if p.requires_grad:
            return p
    raise UserError("net: it has no trainable parameters, allowed: at least one with requires_grad")


def backward(out: Tensor, gradient: Tensor | None = None) -> None:
    """Fill `.grad` from a loss, or from an output and the gradient in it.

    Autocast is off within: torch asks for it, and hooks run inside the forward pass.
    """
    if not out.requires_grad:
        return  # every parameter behind it is frozen
    if torch.is_autocast_enabled(out.device.type):
        with torch.autocast(out.device.type, enabled=False):
            out.backward(gradient)  # type: ignore[no-untyped-call]
    else:
        out.backward(gradient)  # type: ignore[no-untyped-call]


def add_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Add to `.grad`."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        else:
            p.grad += gradient


def output_error(task: Task, out: Tensor, batch: Batch) -> Tensor:
    """E = dLoss/dout [B, D], for a mean loss already divided by B."""
    leaf = out.detach()
    leaf = (leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf).requires_grad_()
    return torch.autograd.grad(task.loss(leaf, batch), leaf)[0].flatten(1)


def detach_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The input of a layer, and the arguments of its `forward` with that input detached; for forward pre-hooks.

    The input is the first argument, by place or by name.
    """
    if args:
        return args[0], (args[0].detach(), *args[1:]), kwargs
    name = next(iter(kwargs)) if "input" not in kwargs else "input"
    return kwargs[name], args, {**kwargs, name: kwargs[name].detach()}


def used_weight(layer: Any) -> Tensor:
    """The weight with which a layer has just computed, detached; to be asked within its forward hook."""
    if isinstance(layer.__dict__["_parameters"].get("weight"), Tensor):
        return layer.weight.detach()  # type: ignore[no-any-return]
    with torch.no_grad():  # a parametrization must not record anything more
        return layer.weight.detach()  # type: ignore[no-any-return]


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer at any time, detached; what its parametrization remembers of each call stays unchanged."""
    if not parametrize.is_parametrized(layer, "weight"):
        return used_weight(layer)
    with unchanged_buffers(layer):
        return used_weight(layer)


@contextmanager
def unfused(net: nn.Module) -> Iterator[None]:
    """Make recurrent layers compute step by step with products that autograd shows, and not in one fused kernel."""
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
    """Whether a backward pass is at work, in which activation checkpointing runs modules a second time."""
    return bool(torch._C._current_graph_task_id() != -1)
