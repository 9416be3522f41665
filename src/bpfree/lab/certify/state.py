"""A snapshot of modules, which is put back after each experiment."""

import torch
from torch import nn


class State:
    """A snapshot of everything in some modules that a run may change; `restore` puts it back to the bit.

    The tensor objects themselves come back too, not only their values: an optimiser holds references to them.

    Args:
        modules: the modules to take a snapshot of, with their submodules.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = [m for module in modules for m in module.modules()]
        named = [(m, slot, name, t) for m in self._modules for slot in _SLOTS for name, t in getattr(m, slot).items()]
        self._tensors = [(m, slot, name, t, t.detach().clone()) for m, slot, name, t in named if t is not None]
        leaves = [t for _, _, _, t in named if t is not None and t.is_leaf]  # others have no gradient, and torch warns
        self._grads = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in leaves]
        self._flags = [(t, t.requires_grad) for _, slot, _, t in named if t is not None and slot == "_parameters"]
        self._modes = [(m, m.training) for m in self._modules]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the snapshot back into the modules."""
        for module, slot, name, tensor, before in self._tensors:
            getattr(module, slot)[name] = tensor  # through the dict: a parametrised module refuses setattr
            tensor.data.copy_(before)
        for tensor, grad, before in self._grads:
            tensor.grad = grad
            if grad is not None:
                grad.copy_(before)
        for tensor, flag in self._flags:
            tensor.requires_grad_(flag)
        for module, mode in self._modes:
            module.training = mode


_SLOTS = ("_parameters", "_buffers")
