"""The read-out of a net: its last linear layer, which turns features into the scores of the output."""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bpfree.errors import UserError
from bpfree.grad import detach_input, runs_again
from bpfree.inputs import Inputs, forward
from bpfree.local.segments import Segment, rehearsal
from bpfree.nets.acceptance import eager


class Readout(NamedTuple):
    """The last linear layer of a net.

    Attributes:
        name: its name in the net.
        layer: the layer; its weight is [D, H].
    """

    name: str
    layer: nn.Linear


def readout_of(net: nn.Module, segment: Segment, outputs: int) -> Readout:
    """Return the read-out of a net, the last Linear of its output segment with as many outputs as the task has.

    Args:
        net: the net that was cut.
        segment: its output segment.
        outputs: D of the task.

    Raises:
        UserError: there is no such layer.
    """
    owners = {name.rpartition(".")[0] for name in segment.parameters}
    found = [
        Readout(name, module)
        for name, module in net.named_modules()
        if name in owners and isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    if not found:
        raise UserError(
            f"net: found no nn.Linear with {outputs} outputs behind the last tap, allowed: a net that ends by one, "
            "since the rule reads its weight. Choose earlier taps, or end the net by such a layer"
        )
    return found[-1]


class Inlet:
    """A context manager in which a layer shows its input, and can be cut from it.

    Args:
        layer: a layer that runs once in a pass; None for nothing to see.
        cut: True to cut the graph before the layer, so that the error of its input is known by itself.

    Attributes:
        h: the input [B, ...] of the last run, attached to what is before the layer; None if it has not run.
        leaf: with `cut` the input as the layer saw it; its `.grad` is the error after a backward pass.
        runs: how often the layer has run.
    """

    def __init__(self, layer: nn.Module | None, *, cut: bool = False) -> None:
        self._layer = layer
        self._cut = cut
        self._handle: RemovableHandle | None = None
        self.h: Tensor | None = None
        self.leaf: Tensor | None = None
        self.runs = 0

    def __enter__(self) -> Self:
        if self._layer is not None:
            self._handle = self._layer.register_forward_pre_hook(self._look, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _look(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if runs_again():  # activation checkpointing repeats forward passes
            return None
        self.h, args, kwargs = detach_input(args, kwargs)
        self.runs += 1
        if not self._cut:
            return None
        self.leaf = (args[0] if args else next(iter(kwargs.values()))).requires_grad_()
        return args, kwargs


def input_shape(net: nn.Module, layer: nn.Module, x: Inputs) -> torch.Size:
    """Return the shape of one sample's features before a layer, such as [H], or [T, H] at each of T steps.

    Args:
        net: the net; it is left as it was.
        layer: one of its layers, which runs once in a pass.
        x: [B, ...], a few samples.

    Raises:
        UserError: the layer runs never, or several times.
    """
    with rehearsal(net, x), eager(), torch.no_grad(), Inlet(layer) as inlet:
        forward(net, x)
    if inlet.h is None or inlet.runs != 1:
        raise UserError(
            f"net: its read-out runs {inlet.runs} times in a forward pass, allowed: once, since the error is taken at "
            "its input. Use error=output"
        )
    return inlet.h.shape[1:]
