"""The mode in which members run under black-box rules, and the state that layers learn in training mode."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bpfree.inputs import Inputs, call, main_input
from bpfree.noise import Noise


def members_mode(net: nn.Module) -> list[_BatchNorm]:
    """Put the net in the mode in which members run: evaluation, but batch norm uses its batch as in training.

    Then the loss of a member is the same function that backprop differentiates. Frozen batch-norm layers use their
    running statistics.

    Args:
        net: the net.

    Returns:
        The batch-norm layers that use their batch.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm) and not _is_frozen(module)]
    net.eval()
    for layer in layers:
        layer.train()
    return layers


@contextmanager
def members(net: nn.Module) -> Iterator[None]:
    """Hold the net in `members_mode` inside the block, where batch norm does not update its running statistics.

    Args:
        net: the net. Its modes are put back afterwards.
    """
    with _modes_restored(net):
        layers = members_mode(net)
        tracking = [layer.track_running_stats for layer in layers]
        try:
            for layer in layers:
                # torch's batch norm in training mode uses its batch, and updates the running statistics only if this
                # flag is True.
                layer.track_running_stats = False
            yield
        finally:
            for layer, before in zip(layers, tracking, strict=True):
                layer.track_running_stats = before


@torch.no_grad()
def learn_state(net: nn.Module, x: Inputs, noise: Noise, still: Sequence[nn.Module]) -> None:
    """Run the net once in training mode, so that its layers update the state that they learn without gradients.

    Such state is the running statistics of batch norm and the singular vectors of spectral norm. Members do not change
    it.

    Args:
        net: the net with its unperturbed parameters.
        x: the minibatch.
        noise: the key of the step.
        still: modules that stay in evaluation mode; see `still_modules`.
    """
    with _modes_restored(net), noise.fold("state").global_rng(main_input(x).device):
        net.train()
        for module in still:
            # The attribute and not eval(), which would also switch the children, and some of them may learn a state.
            module.training = False
        call(net, x)


def still_modules(net: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules that stay in evaluation mode in `learn_state`: frozen modules and dropout.

    Args:
        net: the net.
    """
    # Members run without dropout, so the statistics must be those of a net without dropout.
    return tuple(m for m in net.modules() if _is_frozen(m) or isinstance(m, _DropoutNd))


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled nets run as plain Python, because rules replace the `forward` of layers."""
    used = "torch._dynamo" in sys.modules  # if it was never imported, nothing can have been compiled
    return torch.compiler.set_stance("force_eager") if used else nullcontext()


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    # A module without any parameters, such as batch norm with affine=False, does not count as frozen: nobody can freeze
    # it.
    return bool(parameters) and not any(p.requires_grad for p in parameters)


@contextmanager
def _modes_restored(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
