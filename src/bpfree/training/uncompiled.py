"""torch's optimisers without its compiler, whose import takes 2 seconds and 70 MB.

torch's own classes import the compiler, torch._dynamo, when they are made and in each step, to tell it what to leave
alone. That has no effect in a program that compiles no step of an optimiser, and bpfree compiles none.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import optim


class Uncompiled(optim.Optimizer):
    """A base class of optimisers whose methods do not import the compiler."""

    # The functions inside `torch._disable_dynamo`.
    add_param_group = inspect.unwrap(optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(optim.Optimizer.zero_grad)


def uncompiled(kind: type[optim.Optimizer], module: str) -> type[optim.Optimizer]:
    """Return one of torch's optimisers as a subclass that does not import the compiler. Its steps have the same bits.

    Args:
        kind: a class of torch.optim.
        module: the name of the module that has the subclass under the name of `kind`, so that it can be pickled.
    """
    bare: Callable[..., Any] = inspect.unwrap(kind.step)

    def step(self: optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return bare(self, closure)

    explained = (kind.__doc__ or "").partition("Example:")[0]  # torch's example would run as a test of ours
    return type(kind.__name__, (Uncompiled, kind), {"step": step, "__doc__": explained, "__module__": module})
