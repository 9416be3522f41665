"""Work that members share in the first layer, whose input x is the same for all of them.

    x (W + sigma A B^T)^T = x W^T + sigma (x B) A^T

x W^T is the same for all members, and x B for all members with one key (a mirrored pair). Both are computed once and
kept; then a member costs only the thin product with A^T.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs, call
from bpfree.population.generation import Chunk, Generation
from bpfree.population.perturbation import Dense, Factored, add_scaled


class FirstLayer:
    """A stand-in for the forward pass of the first Linear or Conv2d layer, while members run one by one.

    No trainable parameter may come before the layer, so that its input does not depend on the member. The products
    with W and with B of each key are kept. This takes the memory of one output of the minibatch, and of r channels of
    an output for each key.

    Args:
        layer: the layer.
        generation: the members.
        slices: the number of parts of the minibatch, which always come in the same order.

    Attributes:
        owned: the places of the layer's parameters. Their noise is applied here and must not be added to them.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, generation: Generation, slices: int) -> None:
        places = {id(p): place for place, p in enumerate(generation.parameters)}
        self.layer = layer
        self.forward: Callable[[Tensor], Tensor] = layer.forward
        self.scale = generation.sigma
        self.weight = places[id(layer.weight)]
        # A frozen bias is not among the parameters of the generation. `base` contains it anyway.
        self.bias = None if layer.bias is None else places.get(id(layer.bias))
        # The weight stays unperturbed for all members: `forward` computes x W^T with it, once for each slice.
        self.owned = {self.weight, self.bias}
        self.bases: list[Tensor | None] = [None] * slices
        self.thin: list[Tensor | None] = []
        self.calls = 0

    def begin(self, chunk: Chunk) -> None:
        """Take the noise of the next block of keys, and forget the products of the block before.

        Args:
            chunk: the members of the block and their noise.
        """
        weight = chunk.samples[self.weight]
        assert isinstance(weight, Factored)
        # The last block may use few of its keys; products for the others would be wasted.
        self.a, self.b = weight.a, weight.b[: 1 + max(chunk.places)]
        self.shift = None if self.bias is None else chunk.samples[self.bias]
        self.thin = [None] * len(self.bases)

    def move(self, place: int, sign: int) -> None:
        """Switch to another member.

        Args:
            place: the place of the member's key in the block.
            sign: 1 or -1, the sign of its noise.
        """
        self.place, self.factor = place, sign * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """Return the member's output for the next slice of the minibatch.

        Args:
            x: the slice: [B, ..., I] for a Linear layer, [B, I, H, W] for a Conv2d layer.

        Returns:
            [B, ..., O], or [B, O, H', W'].
        """
        # The layer is called once per slice and member, in a fixed order; the count of calls says which slice this is.
        part = self.calls % len(self.bases)
        self.calls += 1
        base, thin = self.bases[part], self.thin[part]
        if base is None:
            base = self.bases[part] = self.forward(x)
        if thin is None:
            thin = self.thin[part] = thin_products(self.layer, self.b, x)
        # Sign and sigma go into A, the smaller factor. So the members of a mirrored pair share x B.
        xb, a = thin[self.place], self.factor * self.a[self.place]  # [B, ..., r] or [B, r, H', W'], and [O, r]
        if isinstance(self.layer, nn.Linear):
            # [B.., O] + [B.., r] [r, O], where B.. are all leading dimensions as one.
            out = torch.addmm(base.flatten(0, -2), xb.flatten(0, -2), a.T).view(base.shape)
            tail: tuple[int, ...] = ()
        else:
            # Each rank adds an outer product over the channels: a pixel of x B times a column of A.
            out, tail = base, (1, 1)
            for rank in range(a.shape[1]):
                out = torch.addcmul(out, xb[:, rank : rank + 1], a[:, rank].view(-1, 1, 1))
        if self.shift is not None:
            assert isinstance(self.shift, Dense)
            # In place is safe: addmm and addcmul made `out` new, and `base` is not touched.
            out = add_scaled(out, self.shift.values[self.place].view(-1, *tail), self.factor, out)
        return out


@contextmanager
def sharing(layer: nn.Module | None, generation: Generation, slices: int) -> Iterator[FirstLayer | None]:
    """Run the layer as a `FirstLayer` inside the block.

    Args:
        layer: the layer that `find_first_layer` found, or None, which changes nothing.
        generation: the members.
        slices: the number of parts of the minibatch.

    Yields:
        The `FirstLayer`, whose member the caller sets; None without a layer.
    """
    if layer is None:
        yield None
        return
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.forward = shared = FirstLayer(layer, generation, slices)  # type: ignore[method-assign, assignment]
    try:
        yield shared
    finally:
        del layer.forward  # the instance's attribute hid the method of the class, which now runs again


def thin_products(layer: nn.Linear | nn.Conv2d, b: Tensor, x: Tensor) -> Tensor:
    """Multiply x by the factors B of K keys, all in one product.

    Args:
        layer: the layer whose weight the noise is for.
        b: the factors, [K, I, r]; for a convolution I is the number of values of a filter.
        x: [B, ..., I] for a Linear layer, [B, I, H, W] for a Conv2d layer.

    Returns:
        [K, B, ..., r] for a Linear layer, [K, B, r, H', W'] for a Conv2d layer.
    """
    k, i, r = b.shape
    if isinstance(layer, nn.Linear):
        # The factors of all keys form one matrix [I, K r], so x is read once and not once for each key.
        return (x @ b.transpose(0, 1).reshape(i, k * r)).view(*x.shape[:-1], k, r).movedim(-2, 0)
    # Each column of B is a filter [I, h, w]. With k r filters, one convolution serves all keys.
    thin = convolve(layer, x, b.transpose(1, 2).reshape(k * r, *layer.weight.shape[1:]))
    return thin.view(len(x), k, r, *thin.shape[2:]).movedim(1, 0)


def convolve(layer: nn.Conv2d, x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x with other filters in the way of a layer (its stride, padding and dilation), without its bias.

    Args:
        layer: the layer.
        x: [B, I, H, W].
        filters: [F, I, h, w].

    Returns:
        [B, F, H', W'].
    """
    return F.conv2d(x, filters, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def thin_obstacle(layer: nn.Module) -> str | None:
    """The reason why thin products cannot be computed for a layer; None if they can.

    Args:
        layer: any layer. Only some convolutions have a reason.
    """
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        return "has groups or is not padded with zeros"
    return None


@torch.no_grad()
def find_first_layer(net: nn.Module, x: Inputs, generation: Generation, memory: float) -> nn.Module | None:
    """Find the layer whose input is the same for all members, if sharing its products saves time.

    Args:
        net: the net, in the mode in which members run.
        x: the minibatch.
        generation: the members; their noise has a low rank.
        memory: the largest number of bytes that the kept products may take.

    Returns:
        The layer; None if no layer qualifies.
    """
    owners = [module for module in net.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    calls: list[tuple[nn.Module, Any, Any]] = []
    hooks = [m.register_forward_hook(lambda module, args, out: calls.append((module, args, out))) for m in owners]
    began: list[nn.Module] = []
    hooks += [m.register_forward_pre_hook(lambda module, args: began.append(module)) for m in owners]
    try:
        # With autograd on, an input that a trainable parameter has touched says so by requires_grad.
        with torch.enable_grad():
            call(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    layer = began[0] if began else None  # the order of begin, not of end: a parent that owns parameters begins first
    # Exact types, because a subclass may compute something else. (isinstance is there for the type checker.)
    if not isinstance(layer, nn.Linear | nn.Conv2d) or type(layer) not in (nn.Linear, nn.Conv2d):
        return None
    if layer._parameters.keys() != {"weight", "bias"}:  # hooks compute the weight, as in torch's old spectral norm
        return None
    args, out = next((args, out) for module, args, out in calls if module is layer)
    if len(args) != 1:  # the input was passed by keyword, which FirstLayer does not take
        return None
    (h,) = args
    others = {id(p) for module in owners if module is not layer for p in module.parameters(recurse=False)}
    # The evaluator adds no noise to the parameters of this layer. If they were used anywhere else, or twice, they would
    # be without noise there.
    alone = not any(id(p) in others for p in layer.parameters())
    once = began.count(layer) == 1 and "forward" not in vars(layer)
    if h.requires_grad or not (alone and once and layer.weight.requires_grad) or thin_obstacle(layer):
        return None
    block = next(generation.blocks())
    weight = next(s for p, s in zip(generation.parameters, block.samples, strict=True) if p is layer.weight)
    if not isinstance(weight, Factored):
        return None
    rank, features = weight.b.shape[2], len(layer.weight)
    # A thin product must be thin: with 8 r > I it would cost about as much as the whole product.
    # Kept are x W^T, which is one output, and for each of K keys x B, which has r channels in place of O.
    kept = out.numel() * (1 + (1 + max(block.places)) * rank / features) * out.element_size()
    return layer if kept <= memory and 8 * rank <= layer.weight[0].numel() else None
