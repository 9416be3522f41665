"""Feedback alignment and sign-symmetry: backprop whose backward pass reads other matrices than the forward pass.

FA: Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning",
https://doi.org/10.1038/ncomms13276. Sign-symmetry: Xiao et al. 2018, https://arxiv.org/abs/1811.03567, and Moskovitz et
al. 2018, https://arxiv.org/abs/1812.06488.

    d_l = (d_{l+1} B_{l+1}) * f'(a_l),    dW_l = d_l^T h_{l-1}

    FA      B fixed and random
    uSF     B = s sign(W),       s = sqrt(2/(fan_in + fan_out))
    brSF    B = |R| sign(W),     R redrawn at every step
    frSF    B = |R| sign(W),     R fixed

`feedback: aligned` makes B (and R) a copy of W as it is when the rule is bound, so that the first step is backprop's.

B has the shape of W; a convolution carries the error back by the transposed convolution with B. Everything that is
neither Linear nor convolution (normalisation, activation, pooling, a skip connection) has its true derivative. None of
these rules saves memory or time over backprop: they are about weight transport.

A weight of exactly 0 counts as positive (copysign: one pass over memory instead of three).

Where we differ from public code: B is a buffer, so a net has no extra parameters; layers are neither replaced nor
wrapped. A forward hook detaches a layer's input and delivers g B to it instead of g W.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfree.cut import reached_parameters, unchanged_buffers
from bpfree.errors import UserError, check_choice
from bpfree.feedback import (
    ALIGNED,
    FEEDBACKS,
    AlignedFeedback,
    Feedback,
    check_feedback,
    random_like,
    random_magnitudes,
)
from bpfree.grad import backward
from bpfree.inputs import forward
from bpfree.locality import Locality
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Matrix = Callable[[], tuple[Tensor, float]]
"""Gives B, when asked, as a matrix and the number by which it is multiplied."""


class FA(Rule):
    """Feedback alignment.

    Args:
        feedback: how B is drawn, a name in `bpfree.feedback.FEEDBACKS`, or "aligned" with W.
    """

    takes_soft_labels: ClassVar[bool] = True
    one_backward: ClassVar[bool] = True

    def __init__(self, *, feedback: AlignedFeedback = "kaiming") -> None:
        super().__init__()
        check_feedback(feedback)
        self.feedback = feedback
        self.names: list[str] = []

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the layers that carry an error back, and draw their B as the buffers `B<i>`.

        Raises:
            UserError: a weight is used outside Linear and convolution layers, or past its layer's forward, so that its
                true value would carry errors.
        """
        super().bind(net, task, batch)
        layers: dict[str, nn.Module] = {
            name: module for name, module in net.named_modules() if isinstance(module, LAYERS)
        }
        _refuse_weights_outside(net, layers)
        _refuse_layers_passed_by(net, layers, batch)
        self.names = list(layers)
        self._buffers.clear()  # of an earlier net
        for index, name in enumerate(self.names):
            self.register_buffer(f"B{index}", self.draw(net.get_parameter(f"{name}.weight").detach()))

    def locality(self) -> Locality:
        """Backprop's, but for the weights on the way back."""
        return Locality(transports="none")

    def draw(self, weight: Tensor) -> Tensor | None:
        """What is drawn once, of the shape of the weight; None for nothing."""
        return weight.clone() if self.feedback == ALIGNED else random_like(self.feedback, weight)

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """B for this step."""
        assert drawn is not None
        return drawn

    def factors(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> tuple[Tensor, float]:
        """B as a matrix times a number, which costs less to multiply an error by than the matrix."""
        return self.matrix(weight, drawn, noise), 1.0

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """A forward pass as ever, and a backward pass through B."""
        if not self.names:
            raise UserError(f"{type(self).__name__}: not bound to a net. Call rule.bind(net, task, batch) first")
        with noise.global_rng(batch.device), fed_back(net, self._matrices(net, noise)):
            out = forward(net, batch.x)
        loss = task.loss(out, batch)
        backward(loss)
        return task.metrics(out.detach(), batch) | {"loss": loss.detach()}

    def feedback_paths(self, net: nn.Module, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """W and B of every layer but the first, whose B carries nothing."""
        matrices = self._matrices(net, noise)
        weights = {name: net.get_parameter(f"{name}.weight").detach() for name in self.names[1:]}
        return {name: (weight, torch.mul(*matrices[name]())) for name, weight in weights.items()}

    def _matrices(self, net: nn.Module, noise: Noise) -> dict[str, Matrix]:
        matrices: dict[str, Matrix] = {}
        for index, name in enumerate(self.names):
            weight = net.get_parameter(f"{name}.weight").detach()
            matrices[name] = partial(self.factors, weight, self._buffers[f"B{index}"], noise.fold("B", index))
        return matrices


class SignSymmetry(FA):
    """What the three kinds have in common: B has the signs of W."""

    def locality(self) -> Locality:
        """The way back reads the signs of weights, and nothing else of them."""
        return Locality(transports="signs")


class USF(SignSymmetry):
    """Uniform sign-symmetry: B = s sign(W)."""

    def __init__(self) -> None:
        super().__init__()

    def draw(self, weight: Tensor) -> Tensor | None:
        """Nothing: B follows W."""
        return None

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """B = s sign(W)."""
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
        return torch.copysign(weight.new_tensor((2 / (fan_in + fan_out)) ** 0.5), weight)


class FRSF(SignSymmetry):
    """Fixed random-magnitude sign-symmetry: B = |R| sign(W), R fixed.

    Args:
        feedback: how R is drawn, a name in `bpfree.feedback.FEEDBACKS`, or "aligned" with W.
    """

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """B = |R| sign(W)."""
        assert drawn is not None
        return torch.copysign(drawn, weight)


class BRSF(SignSymmetry):
    """Batchwise random-magnitude sign-symmetry: B = |R| sign(W), R redrawn at every step.

    Args:
        feedback: how R is drawn, a name in `bpfree.feedback.FEEDBACKS`.
    """

    def __init__(self, *, feedback: Feedback = "kaiming") -> None:
        check_choice("feedback", feedback, FEEDBACKS)  # not aligned: |W| sign(W) at every step is backprop
        super().__init__(feedback=feedback)

    def draw(self, weight: Tensor) -> Tensor | None:
        """Nothing: R is drawn at every step."""
        return None

    def matrix(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> Tensor:
        """|R| sign(W), R from the key of the step."""
        return torch.mul(*self.factors(weight, drawn, noise))

    def factors(self, weight: Tensor, drawn: Tensor | None, noise: Noise) -> tuple[Tensor, float]:
        """Where |R| is uniform, odd numbers with the signs of W, and their unit."""
        magnitudes, unit = random_magnitudes(self.feedback, weight, noise)
        return magnitudes.copysign_(weight), unit


@contextmanager
def fed_back(net: nn.Module, matrices: Mapping[str, Matrix]) -> Iterator[None]:
    """While active, layers of the net send errors to their input through the given matrices.

    Args:
        net: its layers are hooked, and unhooked afterwards.
        matrices: B by the name of the layer, a matrix of the shape of its weight and a factor; asked for when an error
            comes by, and not for the first layer, whose input needs none.
    """
    handles = []
    inputs: dict[nn.Module, Tensor] = {}

    def detach(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs[layer] = args[0]
        return (args[0].detach(), *args[1:])

    def deliver(matrix: Matrix) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(layer: nn.Module, args: object, out: Tensor) -> Tensor:
            x = inputs.pop(layer)
            delivered: Tensor = _Deliver.apply(out, x, matrix, layer) if x.requires_grad else out  # type: ignore[no-untyped-call]
            return delivered

        return hook

    for name, matrix in matrices.items():
        layer = net.get_submodule(name)
        handles += [layer.register_forward_pre_hook(detach), layer.register_forward_hook(deliver(matrix))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Deliver(torch.autograd.Function):
    """The identity on a layer's output; backwards, g goes on to the layer's weight and g B to its input."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, matrix: Matrix, layer: nn.Module) -> Tensor:
        ctx.shape, ctx.dtype, ctx.matrix, ctx.layer = x.shape, x.dtype, matrix, layer
        ctx.mark_dirty(out)  # so that an in-place activation may follow
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = grads
        matrix, factor = ctx.matrix()
        if isinstance(ctx.layer, nn.Linear):
            delivered = g @ matrix.to(g.dtype)
            if factor != 1:
                delivered *= factor
        else:  # a kernel is smaller than a map
            delivered = _conv_input(ctx.layer, ctx.shape, (matrix * factor).to(g.dtype), g)
        return g, delivered.to(ctx.dtype), None, None


def _conv_input(layer: Any, shape: torch.Size, matrix: Tensor, g: Tensor) -> Tensor:
    """The gradient of a convolution in its input, with another weight."""
    padded = layer.padding_mode != "zeros"
    padding = layer.padding
    if isinstance(padding, str):
        sides = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        padding = tuple(side // 2 for side in sides)
        padded = padded or any(side % 2 for side in sides)
    if padded:
        raise UserError("net: feedback alignment takes convolutions with zero padding, the same on both sides, only")
    x = g.new_empty(1).expand(shape)
    zeros = [0] * len(padding)
    grads = torch.ops.aten.convolution_backward(
        g, x, matrix, None, layer.stride, padding, layer.dilation, False, zeros, layer.groups, [True, False, False]
    )
    return grads[0]  # type: ignore[no-any-return]


def _refuse_weights_outside(net: nn.Module, layers: dict[str, nn.Module]) -> None:
    covered = {id(layer.weight) for layer in layers.values()}
    first_lookups = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    for name, p in net.named_parameters():
        if p.dim() > 1 and id(p) not in covered | first_lookups:
            kinds = ", ".join(kind.__name__ for kind in LAYERS)
            raise UserError(
                f"parameter '{name}' is no weight of a layer of {kinds}, so errors would pass through its true value. "
                "Build the net from those layers, or use a rule without weight transport such as dfa or mono_forward"
            )


def _refuse_layers_passed_by(net: nn.Module, layers: dict[str, nn.Module], batch: Batch) -> None:
    ran: set[str] = set()
    handles = [layer.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, layer in layers.items()]
    try:
        with unchanged_buffers(net), Noise().global_rng(batch.device), torch.enable_grad():
            out = forward(net, batch.first(2).x)
    finally:
        for handle in handles:
            handle.remove()
    reached = reached_parameters(net, out)
    for name in layers:
        if name not in ran and f"{name}.weight" in reached:
            raise UserError(
                f"parameter '{name}.weight' is used without calling '{name}', so errors would pass through its true "
                "value. Call the layer itself, or use a rule without weight transport such as dfa or mono_forward"
            )
