"""The floating-point operations of a training step: those of the net, and those that the heads of a rule add.

The step is counted twice: as it is, and without local losses, with an error of ones at each tap instead. The difference
is what the losses take, however a rule computes them. Torch counts products of matrices, convolutions and attention.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bpfree.grad import backward
from bpfree.inputs import Inputs, forward
from bpfree.noise import Noise
from bpfree.rule import Flops
from bpfree.types import Batch, Scalars, Task

_ATEN = torch.ops.aten


class Steps(Protocol):
    """The methods of `bpfree.local.rule.LocalRule` that are counted; they are documented there."""

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars: ...  # noqa: D102

    def gradients_end_to_end(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars: ...  # noqa: D102

    def cut_net(  # noqa: D102
        self, net: nn.Module, x: Inputs, visit: Callable[[int, Tensor], object], *, attached: bool = False
    ) -> AbstractContextManager[None]: ...


def flops_of_step(
    rule: Steps, net: nn.Module, task: Task, batch: Batch, noise: Noise, *, end_to_end: bool = False
) -> Flops:
    """Return the operations of a step. Gradients are added, as in a step.

    Args:
        rule: bound to the net.
        net: the net, in training mode.
        task: gives target and loss.
        batch: samples and targets.
        noise: the key of the step.
        end_to_end: True for a step that differentiates the sum of all losses through the whole net.
    """
    step = rule.gradients_end_to_end if end_to_end else rule.gradients
    total = _count(lambda: step(net, task, batch, noise))
    of_net = _count(lambda: _without_losses(rule, net, task, batch, noise, attached=end_to_end))
    return Flops(of_net, total - of_net)


def _without_losses(rule: Steps, net: nn.Module, task: Task, batch: Batch, noise: Noise, *, attached: bool) -> None:
    """Run a step in which an error of ones is sent back from each tap, and the task's from the output."""
    hidden: list[Tensor] = []

    def visit(index: int, h: Tensor) -> None:
        if h.requires_grad and attached:
            hidden.append(h)
        elif h.requires_grad:
            backward(h, torch.ones_like(h))

    with rule.cut_net(net, batch.x, visit, attached=attached):
        with noise.global_rng(batch.device):
            out = forward(net, batch.x)
        backward(torch.stack([task.loss(out, batch), *(h.sum() for h in hidden)]).sum())


def _count(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=_ON_A_CPU)
    with counter:
        run()
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(error: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(error, query, key, value))  # type: ignore[no-untyped-call]


# Torch itself counts the attention of a GPU only.
_ON_A_CPU = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
