"""Batch norm under rules that run perturbed nets."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(net: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, the net evaluates by the statistics of the minibatch x [B, ...]; afterwards by their averages.

    The statistics are those of one forward pass of the net as it enters, and constants to whatever is run within:
    perturbed nets differ by their parameters alone, and a step does not depend on averages that lag behind the weights.
    The averages then move by each layer's momentum, as in any training. Variances are unbiased, as running variances
    are. Layers that are frozen or keep no averages are left alone; without others nothing is run.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm) and _is_averaged(module)]
    if not layers:
        net.eval()
        yield
        return
    momenta = [layer.momentum for layer in layers]
    averages = [[average.clone() for average in _averages(layer)] for layer in layers]
    try:
        net.eval()
        for layer in layers:
            layer.train()
            layer.momentum = 1.0  # a running statistic is then the minibatch's own
        net(x)
        net.eval()
        yield
    finally:
        with torch.no_grad():
            for layer, momentum, before in zip(layers, momenta, averages, strict=True):
                layer.momentum = momentum
                weight = _share(layer)
                for average, old in zip(_averages(layer), before, strict=True):
                    average.copy_(old.lerp(average, weight))


def _is_averaged(layer: _BatchNorm) -> bool:
    trained = not layer.affine or any(p.requires_grad for p in layer.parameters())
    return trained and bool(_averages(layer))


def _averages(layer: _BatchNorm) -> list[Tensor]:
    return [average for average in (layer.running_mean, layer.running_var) if average is not None]


def _share(layer: _BatchNorm) -> float:
    """The newest minibatch's share of the averages; without a momentum these are of all minibatches alike."""
    if layer.momentum is not None:
        return layer.momentum
    assert layer.num_batches_tracked is not None
    return 1 / max(int(layer.num_batches_tracked), 1)
