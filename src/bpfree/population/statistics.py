"""Batch norm under rules that run perturbed nets."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def update_statistics(net: nn.Module, x: Tensor) -> None:
    """Let batch-norm layers that are trained see the minibatch x [B, ...], by one forward pass of the unperturbed net.

    Their running statistics then move by their momentum, as in any training; nothing is run for a net without them.
    Of a frozen layer the statistics stay.
    """
    layers = [
        module
        for module in net.modules()
        if isinstance(module, _BatchNorm) and (not module.affine or any(p.requires_grad for p in module.parameters()))
    ]
    if not layers:
        return
    net.eval()
    for layer in layers:
        layer.train()
    net(x)
