"""Linear layers and convolutions of a net, and the inputs from which they computed in a forward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bpfree.errors import UserError
from bpfree.grad import detach_input, runs_again
from bpfree.inputs import Inputs
from bpfree.local.segments import Segment
from bpfree.nets.unchanged import unchanged_buffers

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The types of layer that multiply an input by a weight [outputs, inputs, ...]."""


class SeenLayer(NamedTuple):
    """A layer, and the input from which it has computed in this forward pass.

    Attributes:
        name: its name in the net.
        layer: the module, one of LAYERS.
        x: its input, detached: [B, ..., inputs] of a Linear, [B, channels, ...] of a convolution.
    """

    name: str
    layer: Any
    x: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight [outputs, inputs, ...], attached to the parameters from which it is computed."""
        if not parametrize.is_parametrized(self.layer, "weight"):
            weight: Tensor = self.layer.weight
        else:
            # Reading a parametrized weight runs the parametrization. That of spectral_norm moves its buffers in
            # training mode, and the pass that is going on has moved them already.
            with unchanged_buffers(self.layer):
                weight = self.layer.weight
        return weight

    @property
    def axis(self) -> int:
        """The axis of the output on which its units or channels lie: -1 of a Linear, 1 of a convolution."""
        return -1 if isinstance(self.layer, nn.Linear) else 1

    def response(self, weight: Tensor) -> Tensor:
        """Compute what the layer gives for its input with this weight and without a bias.

        Args:
            weight: [outputs, inputs, ...], of the shape of the layer's weight.

        Returns:
            [B, ..., outputs] of a Linear, [B, outputs, ...] of a convolution.
        """
        if isinstance(self.layer, nn.Linear):
            return F.linear(self.x, weight)
        return self.layer._conv_forward(self.x, weight, None)  # type: ignore[no-any-return]  # knows every padding mode

    def hebbian(self, y: Tensor) -> Tensor:
        """Return sum y_k x over samples and places: the gradient of <response(W), y> in W, without autograd.

        Args:
            y: of the shape of `response`.

        Returns:
            A tensor of the shape of the weight.
        """
        if isinstance(self.layer, nn.Linear):
            return y.flatten(0, -2).T @ self.x.flatten(0, -2)
        conv, rank = self.layer, len(self.layer.kernel_size)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        # Padded here, since the operator knows zeros only, and the same number of them on both sides.
        # autocast does not reach this operator, so the input gets the type of y here
        x = F.pad(self.x.to(y.dtype), conv._reversed_padding_repeated_twice, mode)
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        zeros = [0] * rank
        grads = torch.ops.aten.convolution_backward(
            *(y, x, y.new_empty(shape), None, conv.stride, zeros, conv.dilation, False, zeros, conv.groups),
            [False, True, False],
        )
        return grads[1]  # type: ignore[no-any-return]


class SeenInputs:
    """The inputs of segments and of their layers in one forward pass.

    Args:
        x: the input of the first segment.
        hidden: the number of hidden segments.

    Attributes:
        segments: by the index of a segment, its input.
        layers: by the index of a hidden segment, its layers that have run.
    """

    def __init__(self, x: Inputs, hidden: int) -> None:
        self.segments: dict[int, Inputs] = {0: x}
        self.layers: dict[int, list[SeenLayer]] = {index: [] for index in range(hidden)}


def layers_of(net: nn.Module, segment: Segment) -> dict[str, list[nn.Parameter]]:
    """Return the layers of a segment whose weight learns: by name, the parameters that make the weight.

    Args:
        net: the net that was cut.
        segment: one of its segments.

    Returns:
        Layers in the order of the net. A weight is one parameter, or those of its parametrization.
    """
    weights: dict[str, list[nn.Parameter]] = {}
    for name, module in net.named_modules():
        if isinstance(module, LAYERS):
            # A layer keeps the parameters of a parametrized weight under the second name.
            own = (f"{name}.weight", f"{name}.parametrizations.weight.")
            if parameters := [net.get_parameter(p) for p in segment.parameters if p == own[0] or p.startswith(own[1])]:
                weights[name] = parameters
    return weights


@contextmanager
def watched(net: nn.Module, names: Mapping[str, int], seen: Mapping[int, list[SeenLayer]]) -> Iterator[None]:
    """While active, note the input of each layer that runs.

    Args:
        net: any net; its hooks are removed afterwards.
        names: by the name of a layer, the index of its segment.
        seen: by the index of a segment, the list that is filled, in the order in which layers run.
    """

    def look(name: str, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index in seen and not runs_again():  # activation checkpointing repeats forward passes
                seen[index].append(SeenLayer(name, layer, detach_input(args, kwargs)[0].detach()))

        return note

    handles = [
        net.get_submodule(name).register_forward_pre_hook(look(name, index), with_kwargs=True)
        for name, index in names.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SeesInputs:
    """A base class of rules whose losses can ask for the inputs of a segment and of its layers.

    Attributes:
        sees_inputs: True if a loss calls `input_of` or `layers_of`. Inputs are kept only if a rule asks for them.
        inputs_seen: the inputs of the pass that runs; None between passes.
    """

    sees_inputs: ClassVar[bool] = False
    inputs_seen: SeenInputs | None = None

    def input_of(self, index: int) -> Inputs:
        """Return what segment `index` got from the segment before it, detached; for use in `local_loss`.

        Args:
            index: number of the segment that learns now; the first segment got the batch's x [B, ...].

        Raises:
            UserError: the rule does not say `sees_inputs = True`, or the segment does not learn now.
        """
        return self._seen(index).segments[index]

    def layers_of(self, index: int) -> list[SeenLayer]:
        """Return the Linear layers and convolutions of segment `index` with their inputs; for use in `local_loss`.

        Args:
            index: number of the segment that learns now.

        Returns:
            Layers with a trainable weight, in the order in which they ran; one that ran twice is there twice.

        Raises:
            UserError: the rule does not say `sees_inputs = True`, or the segment does not learn now.
        """
        return self._seen(index).layers[index]

    def _seen(self, index: int) -> SeenInputs:
        name = type(self).__name__
        if not self.sees_inputs:
            raise UserError(f"{name}: inputs are not kept. Write `sees_inputs: ClassVar[bool] = True` in the class")
        if self.inputs_seen is None or index not in self.inputs_seen.segments:
            raise UserError(f"{name}: found segment {index}, whose input is not kept now, allowed: within `local_loss`")
        return self.inputs_seen

    def forget_inputs(self, index: int) -> None:
        """Drop what `input_of` and `layers_of` give for segment `index`, so that its memory is free."""
        if self.inputs_seen is not None:
            self.inputs_seen.segments.pop(index, None)
            self.inputs_seen.layers.pop(index, None)
