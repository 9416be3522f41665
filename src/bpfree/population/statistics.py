"""Batch norm under rules that run perturbed nets."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(net: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, the net is in evaluation mode, but for batch norm, which goes by the batch it is given, as in training.

    So a perturbed net's loss is the one that backprop differentiates. Running statistics hear of the minibatch
    x [B, ...] once, by a forward pass of the net as it enters, which a net without them is spared; what is run within
    leaves them alone. Frozen layers go by theirs.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm) and _is_trained(module)]
    tracking = [layer.track_running_stats for layer in layers]
    net.eval()
    for layer in layers:
        layer.train()
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
