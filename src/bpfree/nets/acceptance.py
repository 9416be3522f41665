"""Checks of a user's net, which may be compiled, wrapped for several devices, lazy, or without storage.

A rule that looks into a net needs modules that run one by one in Python, and parameters that have values.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, call, main_input
from bpfree.noise import Noise

_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def inner(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the net inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Args:
        net: the net, perhaps in wrappers.

    Returns:
        The prefix that its names have in the wrapper ("" without a wrapper), and the net.
    """
    prefix = ""
    # A loop, because wrappers can be nested, such as a compiled net inside DistributedDataParallel.
    while (name := _name_in_wrapper(net)) is not None:
        prefix, net = f"{prefix}{name}.", net.get_submodule(name)
    return prefix, net


def _name_in_wrapper(net: nn.Module) -> str | None:
    """The name of the net inside a wrapper; None if `net` is not a wrapper."""
    if isinstance(net, DataParallel | DistributedDataParallel):
        return "module"
    # By name: importing torch._dynamo only for its class would take seconds.
    return "_orig_mod" if type(net).__name__ == "OptimizedModule" and "_orig_mod" in net._modules else None


def unwrapped(net: nn.Module, *, one_backward: bool) -> nn.Module:
    """Return the net that a trainer trains: without its wrappers, as far as that does not change the training.

    Args:
        net: the user's net. It is not changed, and shares its parameters with the net that is returned.
        one_backward: True if all gradients come from one backward pass through the net. `DistributedDataParallel`
            averages such gradients over processes, so this wrapper is kept.
    """
    while (name := _name_in_wrapper(net)) is not None:
        if isinstance(net, DistributedDataParallel) and (one_backward or _processes() > 1):
            break
        net = net.get_submodule(name)
    return net


def refuse_wrapped(net: nn.Module, rule: str, *, deep: bool = True) -> None:
    """Raise UserError if a wrapper of the net averages gradients, because it would not see the rule's gradients.

    Args:
        net: the user's net.
        rule: the name of a rule whose gradients do not come from one backward pass through the net.
        deep: True to look at all modules; False for the net itself alone, which is fast enough for every step.
    """
    wrapper = next((kind for kind in map(_averages, net.modules() if deep else (net,)) if kind), None)
    if wrapper is None and getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
        wrapper = "a net inside the forward pass of DistributedDataParallel"
    if wrapper is not None:
        raise UserError(
            f"net: found {wrapper}, which averages only the gradients of a backward pass through it. {rule} writes "
            ".grad by itself, so the processes would drift apart. Give the rule the net without the wrapper "
            "(net.module), and call bpfree.mesh.average_gradients(net, rule) before optimizer.step. bpfree.Trainer and "
            "bpfree.fit need neither: they average by themselves when torchrun starts the program; see docs/mesh.md"
        )


def _averages(net: nn.Module) -> str | None:
    """The name of a wrapper that averages gradients; None if `net` is not one."""
    if isinstance(net, DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(net, DataParallel):
        return "DataParallel on several devices" if len(getattr(net, "device_ids", ())) > 1 else None
    return next((kind.__name__ for kind in type(net).__mro__ if kind.__name__ in _SHARDED), None)


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def refuse_meta(net: nn.Module) -> None:
    """Raise UserError if a parameter or buffer of the net does not have storage."""
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"net: '{name}' is on the meta device, so it has a shape and no values. Give it storage with "
                "net.to_empty(device='cpu'), and then values: load_state_dict, or reset_parameters of each module"
            )


def materialize(net: nn.Module, x: Inputs, noise: Noise | None = None) -> None:
    """Give lazy modules such as `nn.LazyLinear` their shapes, by a pass in evaluation mode.

    Args:
        net: the net, which is changed in place. A net without lazy modules is not run.
        x: a few samples [B, ...] as the net takes them.
        noise: the key of the initial weights.

    Raises:
        UserError: a lazy module did not run in the pass.
    """
    if not _lazy(net):
        return
    like = next(net.parameters())
    x = apply(x, lambda t: t.to(like.device))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad(), (noise or Noise()).fold("lazy").global_rng(main_input(x).device):
            call(net, x)
    finally:
        for module, mode in modes:
            module.training = mode
    if left := _lazy(net):
        raise UserError(f"net: the lazy parameter '{left}' has no shape, since its module does not run. Remove it")


def refuse_lazy(net: nn.Module, cure: str) -> None:
    """Raise UserError if a parameter or buffer does not have a shape yet.

    Args:
        net: the net.
        cure: a sentence that says what to do; it ends the message.
    """
    if left := _lazy(net):
        raise UserError(f"net: the lazy parameter '{left}' has no shape yet. {cure}")


def _lazy(net: nn.Module) -> str | None:
    return next((name for name, t in chain(net.named_parameters(), net.named_buffers()) if is_lazy(t)), None)


def eager() -> AbstractContextManager[Any]:
    """Return a context in which compiled modules run as plain Python.

    Compiled code does not call hooks that were added later, and rules work by such hooks.
    """
    if "torch._dynamo" not in sys.modules:  # it was never imported, so nothing can have been compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
