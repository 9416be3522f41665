"""What a net may be when it is given: compiled, wrapped for several devices, lazy, or without storage.

A rule that looks into a net needs its modules to run one by one in Python, and its own parameters with their values.
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
    """The net inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Returns:
        What its names begin with in the wrapper ("" if there is no wrapper), and the net.
    """
    prefix = ""
    while (name := _held(net)) is not None:
        prefix, net = f"{prefix}{name}.", net.get_submodule(name)
    return prefix, net


def _held(net: nn.Module) -> str | None:
    if isinstance(net, DataParallel | DistributedDataParallel):
        return "module"
    return "_orig_mod" if type(net).__name__ == "OptimizedModule" and "_orig_mod" in net._modules else None


def unwrapped(net: nn.Module, *, one_backward: bool) -> nn.Module:
    """The net that a trainer trains: without its wrappers, as far as that changes nothing.

    Args:
        net: as it was given; it stays as it is, and shares its parameters with what is returned.
        one_backward: whether gradients come from one backward pass through the net, which is what
            `DistributedDataParallel` averages over processes. Such a wrapper is then kept.
    """
    while (name := _held(net)) is not None:
        if isinstance(net, DistributedDataParallel) and (one_backward or _processes() > 1):
            break
        net = net.get_submodule(name)
    return net


def refuse_wrapped(net: nn.Module, rule: str, *, deep: bool = True) -> None:
    """Raise UserError if a wrapper should average gradients that it will not see.

    Args:
        net: as it was given.
        rule: the name of a rule whose gradients do not come from one backward pass through the net.
        deep: look at all modules; without, at the net itself, which is fast enough for every step.
    """
    found = next((kind for kind in map(_averages, net.modules() if deep else (net,)) if kind), None)
    if found is None and getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
        found = "a net inside the forward pass of DistributedDataParallel"
    if found is not None:
        raise UserError(
            f"net: found {found}, which averages only the gradients of a backward pass through it. {rule} writes "
            ".grad by itself, so the processes would drift apart. Give the rule the net without the wrapper "
            "(net.module), and average .grad yourself with torch.distributed.all_reduce before optimizer.step"
        )


def _averages(net: nn.Module) -> str | None:
    if isinstance(net, DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(net, DataParallel):
        return "DataParallel on several devices" if len(getattr(net, "device_ids", ())) > 1 else None
    return next((kind.__name__ for kind in type(net).__mro__ if kind.__name__ in _SHARDED), None)


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def refuse_meta(net: nn.Module) -> None:
    """Raise UserError if a parameter or buffer of the net has no storage."""
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"net: '{name}' is on the meta device, so it has a shape and no values. Give it storage with "
                "net.to_empty(device='cpu'), and then values: load_state_dict, or reset_parameters of each module"
            )


def materialize(net: nn.Module, x: Inputs, noise: Noise | None = None) -> None:
    """Give lazy modules such as `nn.LazyLinear` their shapes, by a pass in evaluation mode.

    Args:
        net: changed in place; a net without lazy modules is not run.
        x: [B, ...], a few samples as the net takes them.
        noise: the key by which they are initialised.

    Raises:
        UserError: a lazy module did not run.
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
    """Raise UserError, with what to do about it, if a parameter or buffer has no shape yet."""
    if left := _lazy(net):
        raise UserError(f"net: the lazy parameter '{left}' has no shape yet. {cure}")


def _lazy(net: nn.Module) -> str | None:
    return next((name for name, t in chain(net.named_parameters(), net.named_buffers()) if is_lazy(t)), None)


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules as plain Python inside the context, since compiled code does not call hooks added later."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
