"""Feedback alignment and sign-symmetry: backprop whose backward pass reads other matrices than the forward pass.

FA: Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning",
https://doi.org/10.1038/ncomms13276. Sign-symmetry: Liao, Leibo, Poggio 2016, "How Important is Weight Symmetry in
Backpropagation?", https://arxiv.org/abs/1510.05067, which names uSF, brSF and frSF; on larger nets Xiao et al. 2018,
https://arxiv.org/abs/1811.03567, and Moskovitz et al. 2018, https://arxiv.org/abs/1812.06488.

    d_l = (d_{l+1} B_{l+1}) * f'(a_l),    dW_l = d_l^T h_{l-1}

    FA      B fixed and random
    uSF     B = s sign(W),       s = sqrt(2/(fan_in + fan_out))
    brSF    B = |R| sign(W),     R redrawn at every step
    frSF    B = |R| sign(W),     R fixed

`feedback: aligned` makes B (and R) a copy of W as it is when the rule is bound, so that the first step is backprop's.
Later steps read no weight on the way back, so the rule's `locality` says that the initial weights are transported.

B has the shape of W; a convolution carries the error back by the transposed convolution with B. An error meets a B
wherever it would be multiplied by a parameter in a product: matmul, linear, convolution, bilinear. So the projections
of an attention, the matrices of a GRU and an embedding that is used again as the output layer have a B too. Everything
else has its true derivative: activations, pooling, skip connections, parameters that are added (positions), and scales
of units one by one (the weights of a LayerNorm of any shape), which mix no units. None of these rules saves memory or
time over backprop: they are about weight transport.

A weight of exactly 0 counts as positive (copysign: one pass over memory instead of three).

Where we differ: Liao et al. also change the optimiser ("Batch Manhattan") and normalise; both are your choice here. s
is as in BioTorch with Xavier's weights (https://github.com/jsalbert/biotorch), which replaces layers. Here B is a
buffer of the rule. A forward hook detaches a layer's input and delivers g B to it instead of g W. Where a parameter is
used without its layer, what autograd keeps of it for the error is replaced (`bpfree.local.transport`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bpfree.errors import UserError, check_choice
from bpfree.grad import backward, detach_input, unfused, used_weight, weight_of
from bpfree.inputs import forward
from bpfree.local.feedback import (
    ALIGNED,
    FEEDBACKS,
    AlignedFeedback,
    Feedback,
    check_feedback,
    random_like,
    random_magnitudes,
)
from bpfree.local.layers import LAYERS
from bpfree.local.segments import reached_parameters
from bpfree.local.transport import send_through
from bpfree.local.weight_uses import Direct, direct_uses, rehearsed
from bpfree.nets.acceptance import eager
from bpfree.noise import Noise
from bpfree.rule import Locality, Rule
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task

Matrix = Callable[[Tensor], tuple[Tensor, float]]
"""Gives B for a weight as a matrix and the number by which it is multiplied."""


class FA(Rule):
    """Feedback alignment: errors go back through fixed random matrices B in place of the weights.

    Args:
        feedback: how B is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned" with W.
    """

    takes_soft_labels: ClassVar[bool] = True
    one_backward: ClassVar[bool] = True

    def __init__(self, *, feedback: AlignedFeedback = "kaiming") -> None:
        super().__init__()
        check_feedback(feedback)
        self.feedback = feedback
        self.names: list[str] = []  # of what has a B: layers, then parameters that are used without a layer
        self._is_bound = False
        self.hooked: list[str] = []  # the layers whose errors are led by hooks
        self.direct: dict[str, Direct] = {}  # parameters whose errors are led by what autograd keeps of them

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the weights that carry errors back, and draw their B as the buffers `B<i>`.

        Raises:
            UserError: errors would pass through true weights: a matrix that is computed from parameters, a parameter in
                an operation that is not a product, or layers that activation checkpointing hides.
        """
        super().bind(net, task, batch)
        layers = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
        self.hooked = [name for name, layer in layers.items() if _can_be_hooked(layer)]
        weights = {p for layer in layers.values() if (p := layer._parameters.get("weight")) is not None}
        self.direct = {use.name: use for use in self._rehearse(net, batch, weights)}
        self.names = [*layers, *(name for name in self.direct if name.removesuffix(".weight") not in layers)]
        self._buffers.clear()  # of an earlier net
        for index, name in enumerate(self.names):
            self.register_buffer(f"B{index}", self.draw(self._weight(net, name)))
        self._is_bound = True

    @property
    def is_bound(self) -> bool:
        """True if the weights that carry errors are known."""
        return self._is_bound

    def _rehearse(self, net: nn.Module, batch: Batch, weights: set[nn.Parameter]) -> list[Direct]:
        """Find the parameters that carry errors past the hooks, in a forward pass that changes nothing."""
        unasked = dict.fromkeys(self.hooked, partial(self.factors, drawn=None, noise=Noise()))
        with fed_back(net, unasked), rehearsed(net, batch.first(2).x) as (out, leaves):
            uses = direct_uses(net, out, leaves, weights)
            send_through(net, out, {p: p.detach for p in (net.get_parameter(use.name) for use in uses)})
            reached = set(reached_parameters(net, out))
        hooked = {f"{name}.weight" for name in self.hooked}
        idle = [name for name, p in net.named_parameters() if p.requires_grad and p.dim() > 1 and name not in reached]
        return [*uses, *(Direct(name, False) for name in idle if name not in hooked)]  # those may be used another time

    def locality(self) -> Locality:
        """Backprop's, but for the weights on the way back; an aligned B is a copy of the first weights."""
        return Locality(transports="initial" if self.feedback == ALIGNED else "none")

    def draw(self, weight: Tensor) -> Tensor | None:
        """Return the matrix that is drawn once, of the shape of the weight; None if nothing is.

        Args:
            weight: [outputs, inputs, ...], detached.
        """
        return weight.clone() if self.feedback == ALIGNED else random_like(self.feedback, weight)

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """Return B for this step, of the shape of the weight.

        Args:
            weight: [outputs, inputs, ...], with which the layer has just computed.
            drawn: what `draw` returned.
            noise: the key of this step and layer.
        """
        assert drawn is not None
        return drawn

    def factors(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> tuple[Tensor, float]:
        """Return B as a matrix and a number: to scale the error by the number costs less than to scale the matrix."""
        return self.matrix(weight, drawn, noise), 1.0

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """A forward pass as ever, and a backward pass through B."""
        self.refuse_unbound()
        with fed_back(net, {name: self._matrix_of(name, noise) for name in self.hooked}):
            with noise.global_rng(batch.device), parametrize.cached(), unfused(net) if self.direct else nullcontext():
                out = forward(net, batch.x)
            if self.direct:
                self._lead_direct_uses(net, out, noise)
            backward(loss := task.loss(out, batch))  # within, because checkpointing runs layers again
        return metrics_of(task, out.detach(), batch, loss.detach())

    def feedback_paths(self, net: nn.Module, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """W and B of every weight but the first, whose B carries nothing unless something before it learns."""
        weights = {name: self._weight(net, name) for name in self.names[1:]}
        return {name: (weight, torch.mul(*self._matrix_of(name, noise)(weight))) for name, weight in weights.items()}

    def _weight(self, net: nn.Module, name: str) -> Tensor:
        """The weight that a B replaces, [outputs, inputs, ...]."""
        use = self.direct.get(name)
        if use is None:
            return weight_of(net.get_submodule(name))
        weight = net.get_parameter(name).detach()
        return weight.t() if use.inputs_first else weight

    def _matrix_of(self, name: str, noise: Noise) -> Matrix:
        index = self.names.index(name)
        return partial(self.factors, drawn=self._buffers[f"B{index}"], noise=noise.fold("B", index))

    def _lead_direct_uses(self, net: nn.Module, out: Tensor, noise: Noise) -> None:
        matrices = {}
        for use in self.direct.values():
            name = use.name if use.name in self.names else use.name.removesuffix(".weight")
            turned = use.inputs_first and name == use.name
            matrices[net.get_parameter(use.name)] = cache(partial(self._laid_out, net, name, noise, turned))
        found = send_through(net, out, matrices)
        for p, use in zip(matrices, self.direct.values(), strict=True):
            if p not in found and not p.requires_grad:
                raise UserError(
                    f"net: the frozen parameter '{use.name}' is used without its layer in another number type, so its "
                    "true value would carry errors. Use precision: float32, or compute it by nn.Linear"
                )

    def _laid_out(self, net: nn.Module, name: str, noise: Noise, turned: bool) -> Tensor:
        """B in the shape of the parameter."""
        b = torch.mul(*self._matrix_of(name, noise)(self._weight(net, name)))
        return b.t() if turned else b


class SignSymmetry(FA):
    """The base class of the three kinds of sign-symmetry: B has the signs of W."""

    def locality(self) -> Locality:
        """The way back reads the signs of weights, and nothing else of them."""
        return Locality(transports="signs")


class USF(SignSymmetry):
    """Uniform sign-symmetry: B = s sign(W)."""

    def __init__(self) -> None:
        super().__init__()

    def draw(self, weight: Tensor) -> Tensor | None:
        """Return None, since B follows W."""
        return None

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """B = s sign(W)."""
        scale = (2 / sum(nn.init._calculate_fan_in_and_fan_out(weight))) ** 0.5
        return torch.copysign(weight.new_full((), scale), weight)  # not new_tensor, which copies from the host


class FRSF(SignSymmetry):
    """Fixed random-magnitude sign-symmetry: B = |R| sign(W), R fixed.

    Args:
        feedback: how R is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned" with W.
    """

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """B = |R| sign(W)."""
        assert drawn is not None
        return torch.copysign(drawn, weight)


class BRSF(SignSymmetry):
    """Batchwise random-magnitude sign-symmetry: B = |R| sign(W), R redrawn at every step.

    Args:
        feedback: how R is drawn, a name in `bpfree.local.feedback.FEEDBACKS`.
    """

    draws_in_memory_order: ClassVar[bool] = True

    def __init__(self, *, feedback: Feedback = "kaiming") -> None:
        check_choice("feedback", feedback, FEEDBACKS)  # not aligned: |W| sign(W) at every step is backprop
        super().__init__(feedback=feedback)

    def draw(self, weight: Tensor) -> Tensor | None:
        """Return None, since R is drawn at every step."""
        return None

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """Return |R| sign(W), with R from the key of the step."""
        return torch.mul(*self.factors(weight, drawn, noise))

    def factors(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> tuple[Tensor, float]:
        """Return |R| sign(W) as a matrix and a number; a uniform |R| is odd integers times a unit."""
        magnitudes, unit = random_magnitudes(self.feedback, weight, noise)
        return magnitudes.copysign_(weight), unit


@contextmanager
def fed_back(net: nn.Module, matrices: Mapping[str, Matrix]) -> Iterator[None]:
    """While active, layers of the net send errors to their input through the given matrices.

    The context must stay active during the backward pass, in which activation checkpointing runs layers again. A
    compiled net runs as it was written, since compiled code does not call hooks that were added later.

    Args:
        net: its layers are hooked, and unhooked afterwards.
        matrices: B by the name of the layer, a matrix of the shape of its weight and a factor; asked for when an error
            comes by, and not for the first layer, whose input needs none.
    """
    handles = []
    inputs: dict[nn.Module, Tensor] = {}

    def detach(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        inputs[layer], args, kwargs = detach_input(args, kwargs)
        return args, kwargs

    def deliver(matrix: Matrix) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(layer: nn.Module, args: object, out: Tensor) -> Tensor:
            x = inputs.pop(layer)
            if not x.requires_grad:
                return out
            b = partial(matrix, used_weight(layer))
            delivered: Tensor = _Deliver.apply(out, x, b, layer)  # type: ignore[no-untyped-call]
            return delivered

        return hook

    for name, matrix in matrices.items():
        layer = net.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(detach, with_kwargs=True))
        handles.append(layer.register_forward_hook(deliver(matrix)))
    try:
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Deliver(torch.autograd.Function):
    """The identity on a layer's output; backwards, g goes on to the layer's weight and g B to its input."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, b: Callable[[], tuple[Tensor, float]], layer: nn.Module) -> Tensor:
        ctx.shape, ctx.dtype, ctx.b, ctx.layer = x.shape, x.dtype, b, layer
        ctx.mark_dirty(out)  # so that an in-place activation may follow
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = grads
        matrix, factor = ctx.b()
        if isinstance(ctx.layer, nn.Linear):
            delivered = g @ matrix.to(g.dtype)
            if factor != 1:
                delivered *= factor
        else:  # a kernel is smaller than a map
            delivered = _conv_input(ctx.layer, ctx.shape, (matrix * factor).to(g.dtype), g)
        return g, delivered.to(ctx.dtype), None, None


def _conv_input(layer: Any, shape: torch.Size, matrix: Tensor, g: Tensor) -> Tensor:
    """The gradient of a convolution in its input, with another weight."""
    padding = layer.padding
    if isinstance(padding, str):
        padding = tuple(side // 2 for side in _same_padding(layer))
    x = g.new_empty(1).expand(shape)
    zeros = [0] * len(padding)
    grads = torch.ops.aten.convolution_backward(
        g, x, matrix, None, layer.stride, padding, layer.dilation, False, zeros, layer.groups, [True, False, False]
    )
    return grads[0]  # type: ignore[no-any-return]


def _same_padding(layer: Any) -> list[int]:
    """Zeros on both sides together, in each dimension, of a convolution whose padding is a word."""
    pads = layer.padding == "same"
    return [pads * d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]


def _can_be_hooked(layer: Any) -> bool:
    """True if the layer computes what its type computes, and pads with the same number of zeros on both sides."""
    if getattr(layer.forward, "__func__", None) not in {kind.forward for kind in LAYERS}:
        return False  # a user's own `forward`, which may contain an activation
    if isinstance(layer, nn.Linear):
        return True
    uneven = isinstance(layer.padding, str) and any(side % 2 for side in _same_padding(layer))
    return layer.padding_mode == "zeros" and not uneven
