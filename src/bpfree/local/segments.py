"""Segments of a net: which parameters the loss of each piece between two cuts reaches, and which cuts are refused."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfree.errors import LeakError, UserError, unknown
from bpfree.inputs import Inputs, forward, main_input
from bpfree.local.cut import cut
from bpfree.nets.acceptance import eager, inner
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise

OUTPUT = "output"
_NORMS = {f"torch.nn.modules.{m}" for m in ("batchnorm", "normalization", "instancenorm")}
_PASS_ON = {f"torch.nn.modules.{m}" for m in ("pooling", "dropout", "flatten", "padding", "upsampling")}


class Segment(NamedTuple):
    """A piece of a net between two cuts.

    Attributes:
        name: the tap at its end, or "output" for the last segment.
        shape: the shape of its output for one sample.
        parameters: the names of the parameters that its loss reaches.
    """

    name: str
    shape: torch.Size
    parameters: tuple[str, ...]


def channel_axis(net: nn.Module, segment: Segment) -> int:
    """Return the axis of the channels in a segment's output: 1 for a feature map, -1 for tokens [B, T, H].

    An output with three dimensions is a feature map only if the segment has a one-dimensional convolution.

    Args:
        net: the net that was cut.
        segment: one of its segments.
    """
    layers = [net.get_submodule(name.rpartition(".")[0]) for name in segment.parameters]
    is_map = len(segment.shape) != 2 or any(isinstance(layer, nn.Conv1d) for layer in layers)
    return 1 if is_map else -1


def at_each_step(segments: Sequence[Segment], steps: int) -> list[Segment]:
    """Return the segments with the shape that their output has at one step.

    Args:
        segments: hidden segments with outputs [T, ...].
        steps: T, the number of steps with a target.

    Raises:
        UserError: a segment does not keep the steps apart.
    """
    for segment in segments:
        if len(segment.shape) < 2 or segment.shape[0] != steps:
            raise UserError(
                f"tap '{segment.name}': its output has the shape {list(segment.shape)}, but the task has a target for "
                f"each of {steps} steps, allowed: [{steps}, ...]. Tap modules that keep the steps apart; bpfree's "
                "recurrent nets do with net.each_step=true"
            )
    return [segment._replace(shape=segment.shape[1:]) for segment in segments]


def stages(net: nn.Module) -> tuple[str, ...]:
    """Return the default taps of a Sequential: the ends of all its stages but the last.

    A stage begins at a child with weights and runs through the normalisations and activations behind it. Pooling,
    dropout and reshaping belong to the next stage, so a signal meets the features before they are pooled. So does an
    embedding that says so, see `joins_next_stage`.

    Args:
        net: a Sequential.

    Raises:
        UserError: the net is not a Sequential, so only its author knows where its stages end.
    """
    if not isinstance(net, nn.Sequential):
        raise UserError(
            f"taps: {type(net).__name__} is not an nn.Sequential, so its stages are unknown. bpfree.taps(net, x) shows "
            "where a cut is sound. Name some of those, such as taps=['layer1', 'layer2']"
        )
    taps: list[str] = []
    end = None
    for name, child in net._modules.items():
        if child is None:
            continue
        if begins_stage(child) and not joins_next_stage(child):
            if end is not None:
                taps.append(end)
            end = name
        elif end is not None and not passes_on(child):
            end = name
    return tuple(taps)


def begins_stage(module: nn.Module, *, recurse: bool = True) -> bool:
    """Return True if a module has weights and is more than a normalisation or an activation.

    Args:
        module: any module.
        recurse: count the parameters of its submodules too.
    """
    is_extra = is_normalisation(module) or isinstance(module, nn.PReLU)
    return not is_extra and any(True for _ in module.parameters(recurse))


def is_normalisation(module: nn.Module) -> bool:
    """Return True if a module is a normalisation of torch.

    Args:
        module: any module.
    """
    return type(module).__module__ in _NORMS


def passes_on(module: nn.Module) -> bool:
    """Return True if a module without weights belongs to the stage behind it: pooling, dropout, reshaping.

    Args:
        module: any module.
    """
    return joins_next_stage(module) or any(kind.__module__ in _PASS_ON for kind in type(module).__mro__)


def joins_next_stage(module: nn.Module) -> bool:
    """Return True if the class of a module says by `joins_next_stage = True` that it belongs to the stage behind it.

    The embeddings of bpfree's Transformers say so: alone they would learn from single tokens.

    Args:
        module: any module, with weights or without.
    """
    return getattr(type(module), "joins_next_stage", False) is True


def owners(net: nn.Module, taps: Sequence[str], x: Inputs) -> list[Segment]:
    """Find the parameters that each segment's loss reaches, by a walk over the graph of one forward pass.

    Args:
        net: the net, as it will be trained; buffers and random state come out as they went in.
        taps: names of submodules, in any order.
        x: [B, ...], a few samples, as `bpfree.inputs.forward` takes them.

    Returns:
        The segments in the order in which they run; no parameter is in two of them.

    Raises:
        UserError: a tap that is not there, does not run, or runs twice; a connection around a tap that carries one
            segment's loss into another segment's parameters; an in-place operation on a tapped activation.
    """
    modules = dict(net.named_modules(remove_duplicate=False))
    prefix, _ = inner(net)
    taps = [prefix + tap if tap not in modules and prefix + tap in modules else tap for tap in taps]
    for tap in taps:
        if tap not in modules or not tap:
            raise unknown("tap", tap, [name for name in modules if name])
        if taps.count(tap) > 1:
            raise UserError(f"taps: found '{tap}' {taps.count(tap)} times, allowed: once")
    seen: list[tuple[str, Tensor, int]] = []
    reached: list[tuple[str, ...]] = []

    def visit(index: int, h: Tensor) -> None:
        seen.append((taps[index], h.detach(), h._version))
        reached.append(reached_parameters(net, h))

    with rehearsal(net, x), cut(net, taps, visit):
        out = forward(net, x)
    _refuse_in_place(seen)
    ends = [*((name, h.shape[1:]) for name, h, _ in seen), (OUTPUT, out.shape[1:])]
    reached.append(reached_parameters(net, out))
    segments = [Segment(name, shape, params) for (name, shape), params in zip(ends, reached, strict=True)]
    _refuse_shared(segments)
    _refuse_hidden(net, segments, x)
    _refuse_idle_output(net, segments, out, seen)
    return segments


@contextmanager
def rehearsal(net: nn.Module, x: Inputs) -> Iterator[None]:
    """Make forward passes inside the context leave no trace: buffers and random state are put back afterwards.

    Autograd records the passes, also where the caller has switched it off.

    Args:
        net: any net.
        x: its samples, for their device.
    """
    with (
        unchanged_buffers(net),
        Noise().global_rng(main_input(x).device),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")  # of reentrant checkpointing
        yield


def reached_parameters(net: nn.Module, h: Tensor) -> tuple[str, ...]:
    """Return the names of the parameters from which h was computed, as far as its graph goes back.

    Args:
        net: it owns the parameters.
        h: a tensor with or without a graph.
    """
    seen, stack = set(), [h.grad_fn]
    leaves = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return tuple(name for name, p in net.named_parameters() if id(p) in leaves)


def _refuse_hidden(net: nn.Module, segments: Sequence[Segment], x: Inputs) -> None:
    """Raise UserError if a parameter learns by backprop although no segment has it.

    Reentrant checkpointing shows autograd one node for everything that it runs. A walk over the graph then sees neither
    the cuts inside nor the parameters, and only a real backward pass finds out who gets a gradient.
    """
    known = {name for segment in segments for name in segment.parameters}
    others = {name: p for name, p in net.named_parameters() if p.requires_grad and name not in known}
    if not others:
        return
    before = [(p, p.grad) for p in net.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        with rehearsal(net, x), eager():
            out = forward(net, x)
            if out.requires_grad:
                out.sum().backward()  # type: ignore[no-untyped-call]
        hidden = next((name for name, p in others.items() if p.grad is not None), None)
    finally:
        for p, gradient in before:
            p.grad = gradient
    if hidden is not None:
        raise UserError(
            f"net: the parameter '{hidden}' learns by backprop inside a function that hides its graph, such as "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=True), so a cut has no effect there. Use "
            "use_reentrant=False"
        )


def _refuse_in_place(seen: Sequence[tuple[str, Tensor, int]]) -> None:
    for tap, h, version in seen:
        if h._version != version:
            raise UserError(
                f"tap '{tap}': its output is changed in place by a later module, which would spoil the segment's "
                "loss. Use inplace=False there, or move the tap behind that module."
            )


def _refuse_shared(segments: Sequence[Segment]) -> None:
    first: dict[str, str] = {}
    for segment in segments:
        for name in segment.parameters:
            if name in first:
                raise LeakError(
                    f"parameter '{name}' of segment '{first[name]}' is reached by the loss of segment "
                    f"'{segment.name}' too, by a connection around tap '{first[name]}' or by shared weights. "
                    "Drop that tap, or tap a module behind which the connection has joined. Untie layers that share "
                    "weights, such as a read-out and the embedding: net.tied=false, or tie_word_embeddings=False in a "
                    "model of Hugging Face"
                )
            first[name] = segment.name


def _refuse_idle_output(
    net: nn.Module, segments: Sequence[Segment], out: Tensor, seen: Sequence[tuple[str, Tensor, int]]
) -> None:
    """Raise UserError if nothing would learn from the task's loss, since a tap stands at the very end of the net.

    An output segment without parameters is allowed if the user has frozen some: then the output layer may be frozen.
    """
    if segments[-1].parameters or not seen:
        return
    tap, h, _ = seen[-1]
    is_tapped = out.untyped_storage().data_ptr() == h.untyped_storage().data_ptr()
    if is_tapped or all(p.requires_grad for p in net.parameters()):
        raise UserError(
            f"tap '{tap}' leaves no parameter to the output segment, which learns from the true error. Drop that tap: "
            "the net's output ends the last segment by itself"
        )
