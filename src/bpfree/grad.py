"""What rules have in common when they write `.grad`."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
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
