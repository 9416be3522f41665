"""The modes in which a net runs under black-box rules, and the state that it learns in training mode."""

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
    """Put the net in the mode in which members run: evaluation, but batch norm goes by its batch as in training.

    So a perturbed net's loss is the one that backprop differentiates. Frozen layers go by their running statistics.

    Returns:
        The batch-norm layers that go by their batch.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm) and not _is_frozen(module)]
    net.eval()
    for layer in layers:
        layer.train()
    return layers


@contextmanager
def members(net: nn.Module) -> Iterator[None]:
    """Within it, the net is in `members_mode` and batch norm leaves its running statistics alone."""
    with _modes_restored(net):
        layers = members_mode(net)
        tracking = [layer.track_running_stats for layer in layers]
        try:
            for layer in layers:
                layer.track_running_stats = False
            yield
        finally:
            for layer, before in zip(layers, tracking, strict=True):
                layer.track_running_stats = before


@torch.no_grad()
def learn_state(net: nn.Module, x: Inputs, noise: Noise, still: Sequence[nn.Module]) -> None:
    """Run the net once in training mode, so that its layers update what they learn by themselves.

    Batch norm has running statistics, spectral norm has singular vectors. Members leave both alone.

    Args:
        net, x: the net with its own parameters, and the minibatch.
        noise: the key of the step.
        still: modules that stay in evaluation mode; see `still_modules`.
    """
    with _modes_restored(net), noise.fold("state").global_rng(main_input(x).device):
        net.train()
        for module in still:
            module.training = False
        call(net, x)


def still_modules(net: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that learn no state: frozen ones, and dropout, with which members do not run either."""
    return tuple(m for m in net.modules() if _is_frozen(m) or isinstance(m, _DropoutNd))


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, compiled nets run as they are written: rules replace the `forward` of layers."""
    used = "torch._dynamo" in sys.modules  # nothing is compiled as long as nobody has loaded it
    return torch.compiler.set_stance("force_eager") if used else nullcontext()


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
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
