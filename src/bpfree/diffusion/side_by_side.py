"""Heads of equal form, side by side: each layer computes one batched product for T heads in place of T products.

A small product leaves most of a GPU idle, so T of them together take little more time than one. Activations have the
shape [T, channels, B]. Channels stay in dimension 1, so that the `forward` of one head computes T heads: only the
layers that it calls are replaced.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.nets.denoiser import Head, LinearHead

_MOST_BYTES = 2**30
# The output of a linear layer, those of the norm and the ReLU behind it, and a gradient.
_TENSORS_PER_LAYER = 4
_CONTAINERS = (nn.Sequential, Head, LinearHead)  # their `forward` calls layers, and joins channels in dimension 1


def heads_at_once(heads: Sequence[nn.Module], samples: int) -> int:
    """Return how many heads can be computed side by side within 1 GiB; 1 if they cannot be stacked.

    Heads can be stacked if they have the same form and consist of Linear, BatchNorm1d in training mode and ReLU, as
    those of `bpfree.nets.Denoiser`, without hooks and parametrizations.

    Args:
        heads: the heads.
        samples: B.
    """
    if not _alike(heads):
        return 1
    return max(1, min(len(heads), _MOST_BYTES // bytes_of(heads[0], samples)))


def bytes_of(head: nn.Module, samples: int) -> int:
    """Return about how many bytes the activations of a head take, gradients included.

    Args:
        head: a head that can be stacked.
        samples: B.
    """
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return sum((_TENSORS_PER_LAYER * samples * layer.out_features * layer.weight.itemsize for layer in layers), 1)


def side_by_side(heads: Sequence[nn.Module], features: Tensor, z: Tensor) -> Tensor:
    """Return the outputs [T, B, D] of T heads; batch norm updates the statistics of each of them.

    Gradients reach the heads' own parameters. Up to the backward pass the activations of all T heads are in memory:
    for `bpfree.nets.denoiser.Head` about 11 T B H numbers.

    Args:
        heads: heads for which `heads_at_once` is at least T.
        features: [B, H]; the first head reads them attached, the others detached.
        z: [T, B, E].
    """
    first = features.T.unsqueeze(0)  # [1, H, B]
    many = torch.cat([first, first.detach().expand(len(heads) - 1, -1, -1)])
    stack = _stacked(heads)
    out: Tensor = stack(many, z.transpose(1, 2))
    _update([layer for layer in stack.modules() if isinstance(layer, _BatchNorms)])
    return out.transpose(1, 2)


def _alike(parts: Sequence[nn.Module]) -> bool:
    """True if the parts, one of each head, are of a kind that can be stacked, and equal but for their numbers."""
    forms = [_form(part) for part in parts]
    different = len({id(part) for part in parts}) == len(parts)  # a shared layer counts a batch once for each head
    if forms[0] is None or not different or any(form != forms[0] for form in forms):
        return False
    children = [tuple(part._modules.values()) for part in parts]
    return all(_alike(group) for group in zip(*children, strict=True) if group[0] is not None)


def _form(part: nn.Module) -> tuple[object, ...] | None:
    """The properties that parts must share to be stacked; None for a part that cannot be stacked."""
    if _has_hooks(part) or "forward" in part.__dict__:
        return None
    tensors = [None if t is None else (t.shape, t.dtype, t.device) for t in part._parameters.values()]
    form = (type(part), *tensors, *((name, child is None) for name, child in part._modules.items()))
    # By `type` and not by isinstance: a subclass, such as a parametrized layer, computes something else.
    if type(part) is nn.BatchNorm1d:
        usual = part.training and part.affine and part.track_running_stats and part.momentum is not None
        return (*form, part.eps, part.momentum) if usual else None
    return form if type(part) in (nn.Linear, nn.ReLU, *_CONTAINERS) else None


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def _stacked(parts: Sequence[nn.Module]) -> nn.Module:
    """A module that computes with [T, channels, B] what each of T modules computes with [B, channels]."""
    first = parts[0]
    if isinstance(first, nn.Linear):
        return _Linears(parts)
    if isinstance(first, nn.BatchNorm1d):
        return _BatchNorms(parts)
    if isinstance(first, nn.ReLU):
        return nn.ReLU()  # not in place, whatever that of the heads is
    both = copy.copy(first)
    both._modules = {
        name: None if child is None else _stacked([part.get_submodule(name) for part in parts])
        for name, child in first._modules.items()
    }
    return both


class _Layers(nn.Module):
    """Layers of one kind, one of each head."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = list(layers)  # in a list, since they are modules of the heads and not of this object

    def joined(self, name: str) -> Tensor:
        """A parameter or buffer of all layers, [T, ...]."""
        return torch.stack([getattr(layer, name) for layer in self.layers])


class _Linears(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, in, B] to [T, out, B]."""
        weight = self.joined("weight")  # [T, out, in]
        if self.layers[0].bias is None:
            return torch.bmm(weight, x)
        return torch.baddbmm(self.joined("bias").unsqueeze(2), weight, x)


class _BatchNorms(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [T, C, B] over B, and compute the new running statistics."""
        layer = self.layers[0]
        self.mean, self.var, weight, bias = (
            self.joined(name).flatten() for name in ("running_mean", "running_var", "weight", "bias")
        )
        # T C channels of one sample with B places: the statistics of a channel are over its places.
        flat = x.reshape(1, -1, x.shape[2])
        out = F.batch_norm(flat, self.mean, self.var, weight, bias, True, layer.momentum, layer.eps)  # type: ignore[arg-type]
        return out.view_as(x)


@torch.no_grad()
def _update(norms: Sequence[_BatchNorms]) -> None:
    """Write the new statistics into the layers, and count the batch: one call each for all layers of all heads."""
    if not norms:
        return
    layers = [layer for norm in norms for layer in norm.layers]
    old = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
    new = [part for norm in norms for part in norm.mean.chunk(len(norm.layers))]
    new += [part for norm in norms for part in norm.var.chunk(len(norm.layers))]
    torch._foreach_copy_(old, new)  # type: ignore[arg-type]
    torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)  # type: ignore[misc]
