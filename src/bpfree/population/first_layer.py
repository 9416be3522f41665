"""The layer that all members give the same input: what its noise has in common is computed once for all of them.

x (W + sigma A B^T)^T = x W^T + sigma (x B) A^T
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs, call
from bpfree.population.generation import Chunk, Generation
from bpfree.population.perturbation import Dense, Factored


class FirstLayer:
    """A Linear or Conv2d layer whose input no trainable parameter has touched, while members run one by one.

    Its products with W, and with B of each key, are kept: an output of the minibatch, and r channels of one for a key.

    Args:
        layer: it.
        generation: the members.
        slices: in how many parts the minibatch comes, always in the same order.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, generation: Generation, slices: int) -> None:
        places = {id(p): place for place, p in enumerate(generation.parameters)}
        self.layer = layer
        self.forward: Callable[[Tensor], Tensor] = layer.forward
        self.scale = generation.scale
        self.weight = places[id(layer.weight)]
        self.bias = None if layer.bias is None else places.get(id(layer.bias))
        self.owned = {self.weight, self.bias}  # places of parameters that no noise need be added to
        self.bases: list[Tensor | None] = [None] * slices
        self.thin: list[Tensor | None] = []
        self.calls = 0

    def begin(self, chunk: Chunk) -> None:
        """Go on to the members of another block of keys."""
        weight = chunk.samples[self.weight]
        assert isinstance(weight, Factored)
        self.a, self.b = weight.a, weight.b[: 1 + max(chunk.places)]
        self.shift = None if self.bias is None else chunk.samples[self.bias]
        self.thin = [None] * len(self.bases)

    def move(self, place: int, sign: int) -> None:
        """Be the layer of the member whose key has that place in the block."""
        assert isinstance(self.scale, float)
        self.place, self.factor = place, sign * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """[B, ..., O] of x [B, ..., I], or [B, O, H', W'] of x [B, I, H, W]: the member's output for the next slice."""
        part = self.calls % len(self.bases)
        self.calls += 1
        base, thin = self.bases[part], self.thin[part]
        if base is None:
            base = self.bases[part] = self.forward(x)
        if thin is None:
            thin = self.thin[part] = thin_products(self.layer, self.b, x)
        own, a = thin[self.place], self.factor * self.a[self.place]  # [B, ..., r] or [B, r, H', W'], and [O, r]
        if isinstance(self.layer, nn.Linear):
            out = torch.addmm(base.flatten(0, -2), own.flatten(0, -2), a.T).view(base.shape)
            tail: tuple[int, ...] = ()
        else:
            out, tail = base, (1, 1)
            for rank in range(a.shape[1]):
                out = torch.addcmul(out, own[:, rank : rank + 1], a[:, rank].view(-1, 1, 1))
        if self.shift is not None:
            assert isinstance(self.shift, Dense)
            out = out.add_(self.shift.values[self.place].view(-1, *tail), alpha=self.factor)
        return out


@contextmanager
def sharing(layer: nn.Module | None, generation: Generation, slices: int) -> Iterator[FirstLayer | None]:
    """Within it, the layer runs as the `FirstLayer` that comes; nothing changes without one."""
    if layer is None:
        yield None
        return
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.forward = shared = FirstLayer(layer, generation, slices)  # type: ignore[method-assign, assignment]
    try:
        yield shared
    finally:
        del layer.forward


def thin_products(layer: nn.Linear | nn.Conv2d, b: Tensor, x: Tensor) -> Tensor:
    """The products of x with B of K keys, b [K, I, r].

    Returns:
        [K, B, ..., r] of a Linear layer and x [B, ..., I], [K, B, r, H', W'] of a Conv2d layer and x [B, I, H, W].
    """
    k, i, r = b.shape
    if isinstance(layer, nn.Linear):
        return (x @ b.transpose(0, 1).reshape(i, k * r)).view(*x.shape[:-1], k, r).movedim(-2, 0)
    thin = convolve(layer, x, b.transpose(1, 2).reshape(k * r, *layer.weight.shape[1:]))
    return thin.view(len(x), k, r, *thin.shape[2:]).movedim(1, 0)


def convolve(layer: nn.Conv2d, x: Tensor, filters: Tensor) -> Tensor:
    """[B, F, H', W'] of x [B, I, H, W] and filters [F, I, h, w], with the strides of the layer and without its bias."""
    return F.conv2d(x, filters, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def thin_obstacle(layer: nn.Module) -> str | None:
    """What keeps thin products of a convolution from being convolutions; None for nothing."""
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        return "has groups or is not padded with zeros"
    return None


@torch.no_grad()
def find_first_layer(net: nn.Module, x: Inputs, generation: Generation, memory: float) -> nn.Module | None:
    """The layer whose input is the same for all members, if sharing its products pays; None otherwise.

    Args:
        net, x: in the mode in which members run, and what one of them runs on.
        generation: the members; their noise has a low rank.
        memory: bytes that may be kept for it.
    """
    owners = [module for module in net.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    calls: list[tuple[nn.Module, Any, Any]] = []
    hooks = [m.register_forward_hook(lambda module, args, out: calls.append((module, args, out))) for m in owners]
    began: list[nn.Module] = []
    hooks += [m.register_forward_pre_hook(lambda module, args: began.append(module)) for m in owners]
    try:
        with torch.enable_grad():
            call(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    layer = began[0] if began else None
    if not isinstance(layer, nn.Linear | nn.Conv2d) or type(layer) not in (nn.Linear, nn.Conv2d):
        return None
    if layer._parameters.keys() != {"weight", "bias"}:  # hooks compute the weight, as of an old spectral norm
        return None
    args, out = next((args, out) for module, args, out in calls if module is layer)
    if len(args) != 1:  # it was called by keyword
        return None
    (h,) = args
    others = {id(p) for module in owners if module is not layer for p in module.parameters(recurse=False)}
    alone = not any(id(p) in others for p in layer.parameters())
    once = began.count(layer) == 1 and "forward" not in vars(layer)
    if h.requires_grad or not (alone and once and layer.weight.requires_grad) or thin_obstacle(layer):
        return None
    block = next(generation.blocks())
    weight = next(s for p, s in zip(generation.parameters, block.samples, strict=True) if p is layer.weight)
    if not isinstance(weight, Factored):
        return None
    rank, features = weight.b.shape[2], len(layer.weight)
    kept = out.numel() * (1 + (1 + max(block.places)) * rank / features) * out.element_size()
    return layer if kept <= memory and 8 * rank <= layer.weight[0].numel() else None
