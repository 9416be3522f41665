"""PEPITA: the error is added to the input, and layers learn from what that changes.

Dellaferrera & Kreiman 2022, "Error-driven Input Modulation: Solving the Credit Assignment Problem without a Backward
Pass", https://arxiv.org/abs/2201.11665

    first pass    h_l = m_l * f(W_l h_{l-1}),      e = softmax(out) - Y,   m_l the dropout mask, 0 or 1/(1-p)
    second pass   h_l' from x' = x + e F,          F [C, inputs] fixed and random, the same masks m_l
    hidden        dW_l = (h_l - h_l')^T h'_{l-1}   the derivative of f does not enter
    output        dW_L = e^T h'_{L-1}

F is drawn as 0.05 U(+-sqrt(6/inputs)), which is `feedback: kaiming` with `scale: 0.05`. To first order in F the hidden
signal is h_l - h_l' = -e F J_l, where J_l is the layer's Jacobian in the input.

Of each segment one Linear or convolution learns, and the signal is that of the segment's output, behind a dropout that
follows in a Sequential. So a dropped unit does not learn in that step, as in the authors' code,
https://github.com/GiorgiaD/PEPITA (its NumPy version multiplies the signal by m_l once more). A bias, which the
authors' nets have not, gets sum_B of the signal. A convolution's gradient is averaged over the positions of its output
and not summed, as in the authors' code. Normalisations are left as they were drawn, also as there; their statistics are
those of the first pass.

Where we differ: the output layer learns from the first pass' e, as the paper writes. The authors' code takes the error
of the second pass, except for convolutional nets with one fully connected layer. For another loss, e is its derivative
in the output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import backward, detach_input, first_trainable, loss_and_error, runs_again, trainable, weight_of
from bpfree.inputs import Inputs, forward
from bpfree.local.autotaps import taps_behind_dropout
from bpfree.local.cut import Taps, cut
from bpfree.local.feedback import FEEDBACKS, Feedback, random_like
from bpfree.local.layers import LAYERS
from bpfree.local.rule import LocalRule
from bpfree.local.weight_uses import rehearsed
from bpfree.nets.acceptance import eager
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Locality
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Pepita(LocalRule):
    """Error-driven input modulation: layers learn from the change that an added error makes.

    Args:
        feedback: how F is drawn, a name in `bpfree.local.feedback.FEEDBACKS`.
        scale: multiplies F.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, with the
            dropout behind them. Each hidden segment must have one Linear or convolution, whose output has the shape of
            the segment's.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify", "multilabel", "reconstruct", "regress")  # one error for a sample
    mesh_modes: ClassVar[tuple[str, ...]] = ("data",)  # all layers wait for the error of the output
    trains_every_parameter: ClassVar[bool] = False  # normalisations stay as they were drawn
    F: Tensor  # [D, inputs]

    def __init__(self, *, feedback: Feedback = "kaiming", scale: float = 0.05, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_choice("feedback", feedback, FEEDBACKS)
        check_positive("scale", scale)
        self.feedback = feedback
        self.scale = scale
        self.layers: list[str | None] = []  # the one that learns in each hidden segment
        self.features: list[int] = []  # its outputs at each position

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the layer of each hidden segment, and draw F [D, inputs].

        Raises:
            UserError: a hidden segment has no such layer, or several; samples are not floating point numbers.
        """
        with rehearsed(net, batch.first(2).x):
            pass  # it refuses layers that would not learn
        with eager():
            super().bind(net, task, batch)
        if not (dtype := batch.tensor.dtype).is_floating_point:
            raise UserError(
                f"data: samples are of type {dtype}, but pepita adds the error to them, allowed: a floating "
                "type. For tokens use a rule that leaves the input alone, such as dfa"
            )
        self.layers = [_layer_of(net, segment.name, segment.parameters) for segment in self.segments[:-1]]
        self.features = [len(weight_of(net.get_submodule(name))) if name else 0 for name in self.layers]
        like = first_trainable(net)
        shape = like.new_empty(()).expand(task.dim, prod(batch.tensor.shape[1:]))
        self.register_buffer("F", self.scale * random_like(self.feedback, shape))

    def default_taps(self, net: nn.Module, x: Inputs) -> list[str] | None:
        """Return the ends of the stages, behind dropout, so that dropped units do not learn; see `LocalRule`."""
        return taps_behind_dropout(net, x)

    def locality(self) -> Locality:
        """The second pass waits for the error of the first, and compares with all of its activations."""
        return LOCAL._replace(waits=True, memory="grows")

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 2: one pass of the samples, and one of the samples with the error."""
        return 2

    def unit(self, net: nn.Module, index: int) -> list[nn.Parameter]:
        """The layer of a hidden segment, or the output segment."""
        if index == len(self.layers):
            return super().unit(net, index)
        name = self.layers[index]
        return trainable(net.get_submodule(name)) if name else []

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Two forward passes; in the second, each segment learns on the way."""
        self.refuse_unbound()
        x, before = batch.tensor, list[Tensor]()
        start = _buffers(net)
        first = cut(net, self.taps, lambda index, h: before.append(h))
        with torch.no_grad(), noise.global_rng(batch.device), eager(), first:
            out = forward(net, x)
        loss, error = loss_and_error(task, out, batch)  # [B, D], of the mean loss
        modulation = (len(error) * error).to(self.F.dtype) @ self.F  # [B, inputs]
        attached: list[Tensor] = []

        def learn(index: int, h: Tensor) -> None:
            if attached:
                self.learn_segment(index, attached.pop(), before[index] - h.detach())

        hooks = _attached_alone(net, [name for name in self.layers if name], attached)
        second = cut(net, self.taps, learn)
        with unchanged_buffers(net), noise.global_rng(batch.device), eager(), second, hooks:
            for module, name, value in start:  # so that both passes have the same weights under spectral_norm
                module._buffers[name] = value
            last = forward(net, x + modulation.view_as(x).to(x.dtype))
            backward(last, error.view_as(last).to(last.dtype))  # within, because checkpointing runs layers again
        self.finish_segment(len(self.taps))
        return metrics_of(task, out, batch, loss)

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """h_l - h_l', a mean over the batch and over positions; `h` is the layer's own output, before its activation.

        Raises:
            UserError: the segment's output has another shape than its layer's.
        """
        if h.shape != signal.shape:
            raise UserError(
                f"tap '{self.taps[index]}': its output has the shape {list(signal.shape[1:])}, but that of layer "
                f"'{self.layers[index]}' is {list(h.shape[1:])}, allowed: the same. Tap a module before pooling"
            )
        return (signal * (self.features[index] / h.numel())).to(h.dtype)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """<a_l, h_l - h_l'>, whose gradient in a_l is that. Its value has no meaning of its own."""
        return (h * self.local_gradient(index, h.detach(), signal)).sum()


@contextmanager
def _attached_alone(net: nn.Module, layers: Sequence[str], attached: list[Tensor]) -> Iterator[None]:
    """While active, each layer's output is put into `attached`, reaching that layer's parameters and nothing else."""

    def detach(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return detach_input(args, kwargs)[1:]

    def keep(layer: nn.Module, args: object, out: Tensor) -> Tensor:
        if not runs_again():
            attached.append(out)
        return out.detach()

    handles = []
    for name in layers:
        layer = net.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(detach, with_kwargs=True))
        handles.append(layer.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _buffers(net: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Copies of all buffers, with where they belong."""
    named = ((module, name, b) for module in net.modules() for name, b in module._buffers.items() if b is not None)
    return [(module, name, b.clone()) for module, name, b in named]


def _layer_of(net: nn.Module, segment: str, parameters: Sequence[str]) -> str | None:
    """The one layer with these parameters; None if nothing but normalisations is trainable."""
    if all(net.get_parameter(name).dim() < 2 for name in parameters):
        return None
    owners = {name: name.partition(".parametrizations.")[0] for name in parameters if ".parametrizations." in name}
    owners = {name: name.rpartition(".")[0] for name in parameters} | owners
    found: list[str] = [name for name, m in net.named_modules() if name in owners.values() and isinstance(m, LAYERS)]
    if len(found) != 1:
        raise UserError(
            f"segment '{segment}': found {', '.join(found) or 'no'} trainable Linear or convolution, allowed: one. "
            "Choose taps=[...] so that there is one between each tap and the next"
        )
    for name, owner in owners.items():
        is_other = owner != found[0] and not isinstance(net.get_submodule(owner), NORMS)
        if is_other and net.get_parameter(name).dim() > 1:
            raise UserError(
                f"segment '{segment}': its parameter '{name}' would not learn, since pepita trains the layer "
                f"'{found[0]}' there. Freeze it, or choose taps=[...] so that it belongs to the output segment"
            )
    return found[0]
