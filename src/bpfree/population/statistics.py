"""Batch norm under rules that run perturbed nets."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def members_mode(net: nn.Module) -> list[_BatchNorm]:
    """Put the net in the mode in which members run: evaluation, but batch norm goes by its batch as in training.

    So a perturbed net's loss is the one that backprop differentiates. Frozen layers go by their running statistics.

    Returns:
        The batch-norm layers that go by their batch.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm) and _is_trained(module)]
    net.eval()
    for layer in layers:
        layer.train()
    return layers


@contextmanager
def batch_statistics(net: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, the net is in `members_mode`, and what is run leaves its running statistics alone.

    These hear of the minibatch x [B, ...] once, by a forward pass of the net as it enters, which a net without them is
    spared.
    """
    layers = members_mode(net)
    tracking = [layer.track_running_stats for layer in layers]
    if any(tracking):
        net(x)
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, before in zip(layers, tracking, strict=True):
            layer.track_running_stats = before


def _is_trained(layer: _BatchNorm) -> bool:
    return not layer.affine or any(p.requires_grad for p in layer.parameters())
