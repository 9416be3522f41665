"""The forward passes of a training step in which, or after which, the segments of a cut net learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bpfree.grad import backward, loss_and_error, wide
from bpfree.inputs import Inputs, forward
from bpfree.local.channels_last import keep_order
from bpfree.local.readout import Inlet
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task


class Learner(Protocol):
    """The methods of `bpfree.local.rule.LocalRule` that the passes call; they are documented there."""

    taps: tuple[str, ...]
    output_weight: float
    needs_error: ClassVar[bool]
    memory: Literal["fast", "flat"]

    def cut_net(  # noqa: D102
        self, net: nn.Module, x: Inputs, visit: Callable[[int, Tensor], object], *, attached: bool = False
    ) -> AbstractContextManager[None]: ...

    def error_of(self, net: nn.Module) -> nn.Module | None: ...  # noqa: D102

    def target(self, task: Task, batch: Batch) -> Tensor: ...  # noqa: D102

    def segment_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor: ...  # noqa: D102

    def learn_segment(self, index: int, h: Tensor, signal: Tensor) -> Scalars: ...  # noqa: D102

    def learn_output(self, task: Task, out: Tensor, batch: Batch) -> Scalars: ...  # noqa: D102

    def finish_segment(self, index: int) -> None: ...  # noqa: D102

    def forget_inputs(self, index: int) -> None: ...  # noqa: D102


class Learned(NamedTuple):
    """The result of a pass.

    Attributes:
        scalars: losses and metrics.
        error: [B, D], the error dLoss/dout of the output, or that of the place which `error_of` names.
    """

    scalars: Scalars
    error: Tensor


def learn_by_segments(rule: Learner, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
    """Run the passes of a step in which each segment learns alone: on the way, or when the error is known.

    Args:
        rule: bound to the net.
        net: the net, in training mode.
        task: gives target and loss.
        batch: samples and targets.
        noise: the key of the step.
    """
    if not rule.needs_error:
        return learn_on_the_way(rule, net, task, batch, noise)
    if rule.memory == "fast":
        return learn_afterwards(rule, net, task, batch, noise).scalars
    return learn_in_two_passes(rule, net, task, batch, noise)


def learn_end_to_end(rule: Learner, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
    """Run one pass without cuts, and differentiate the sum of all losses through the whole net.

    Args:
        rule: bound to the net. Its local losses take the target as their signal.
        net: the net, in training mode.
        task: gives target and loss.
        batch: samples and targets.
        noise: the key of the step.
    """
    losses: Scalars = {}
    signal = rule.target(task, batch)  # [B, D]

    def add(index: int, h: Tensor) -> None:
        keep_order(h)
        losses[f"loss/{rule.taps[index]}"] = rule.segment_loss(index, h, signal)

    # Until the backward pass is over: activation checkpointing runs modules again in it, see `learn_on_the_way`.
    with rule.cut_net(net, batch.x, add, attached=True):
        with noise.global_rng(batch.device):
            out = forward(net, batch.x)
        loss = task.loss(out, batch)
        backward(torch.stack([rule.output_weight * loss, *(each.to(loss) for each in losses.values())]).sum())
    losses = {name: each.detach() for name, each in losses.items()}
    return losses | metrics_of(task, out.detach(), batch, loss.detach())


def learn_on_the_way(rule: Learner, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
    """Run one pass in which each segment learns from the target as soon as its output is there.

    Args:
        rule: bound to the net.
        net: the net, in training mode.
        task: gives the target.
        batch: samples and targets.
        noise: the key of the step.
    """
    scalars: Scalars = {}
    signal = rule.target(task, batch)  # [B, D]

    def learn(index: int, h: Tensor) -> None:
        scalars.update(rule.learn_segment(index, h, signal))

    with rule.cut_net(net, batch.x, learn):
        with noise.global_rng(batch.device):
            out = forward(net, batch.x)
        # The net is still cut here: the backward pass of the output may run modules again (activation checkpointing),
        # and a second run without cuts would reach the segments before.
        return scalars | rule.learn_output(task, out, batch)


def learn_in_two_passes(rule: Learner, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
    """Learn in the memory of one segment although the signal is the error of the output.

    The first pass finds the error. It also teaches the output segment and the last hidden one, whose activations are
    there at its end anyway. The second pass teaches the other segments on the way, and stops when the last of them has
    learned. Both passes draw from the same key, so their dropout masks agree; the weights do not change in between, so
    their activations agree to the bit.

    Args:
        rule: bound to the net.
        net: the net, in training mode.
        task: gives the loss.
        batch: samples and targets.
        noise: the key of the step.
    """
    last = len(rule.taps) - 1
    final, error = learn_afterwards(rule, net, task, batch, noise, keep_from=last)
    scalars: Scalars = {}

    def learn(index: int, h: Tensor) -> None:
        scalars.update(rule.learn_segment(index, h, error))
        if index == last - 1:
            raise _Enough  # only an exception ends the forward pass of a user's net from within a hook

    if last > 0:
        # `suppress` stands outside `cut_net`: an exception that passes through `cut` keeps it from complaining that the
        # later taps did not run.
        with suppress(_Enough), noise.global_rng(batch.device), rule.cut_net(net, batch.x, learn):
            forward(net, batch.x)
    return scalars | final


def learn_afterwards(
    rule: Learner, net: nn.Module, task: Task, batch: Batch, noise: Noise, *, keep_from: int = 0
) -> Learned:
    """Run one pass, at whose end the output segment and the segments from `keep_from` on learn.

    Args:
        rule: bound to the net.
        net: the net, in training mode.
        task: gives the loss.
        batch: samples and targets.
        noise: the key of the step.
        keep_from: the first segment whose activations are kept; 0, the default, keeps all.
    """
    kept: list[tuple[int, Tensor]] = []
    rehearsal = ExitStack()

    def keep(index: int, h: Tensor) -> None:
        if index >= keep_from:
            kept.append((index, h))
        else:
            rule.forget_inputs(index)
        if index == keep_from - 1:
            # The segments so far run again in the second pass. It must find their batch statistics as this pass found
            # them, so that they are updated once. Later segments do not run again, so their updates stay.
            rehearsal.close()

    # Until all have learned, see `learn_on_the_way`.
    with rule.cut_net(net, batch.x, keep), Inlet(rule.error_of(net), cut=True) as inlet:
        with rehearsal, noise.global_rng(batch.device):
            if keep_from > 0:
                rehearsal.enter_context(unchanged_buffers(net))
            out = forward(net, batch.x)
        loss, error = loss_and_error(task, out, batch)  # [B, D]
        if rule.output_weight == 1:  # the error is the gradient in the output, so the loss is not differentiated twice
            backward(out, error.view_as(out).to(out.dtype))
            if inlet.h is not None and inlet.leaf is not None and inlet.leaf.grad is not None:
                backward(inlet.h, inlet.leaf.grad)
                error = wide(inlet.leaf.grad).flatten(1)  # [B, d]
            rule.finish_segment(len(rule.taps))
            scalars = metrics_of(task, out.detach(), batch, loss)
        else:
            scalars = rule.learn_output(task, out, batch)
        return Learned(_learn_kept(rule, kept, error) | scalars, error)


def _learn_kept(rule: Learner, kept: list[tuple[int, Tensor]], error: Tensor) -> Scalars:
    """Let segments learn from the last to the first, so that each graph is freed before the next is differentiated."""
    scalars: Scalars = {}
    while kept:
        index, h = kept.pop()
        scalars = rule.learn_segment(index, h, error) | scalars
        del h  # or this name would hold the graph while the next segment learns
    return scalars


class _Enough(Exception):  # noqa: N818, it is not an error
    """Ends a forward pass whose remaining part is not needed."""
