"""The rows of a batch that one process computes: their task, and the average of the gradients of all rows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bpfree.grad import trainable
from bpfree.inputs import apply
from bpfree.local.rule import LocalRule
from bpfree.mesh import Group, Share, sharing
from bpfree.mesh.average import Average, refuse_different
from bpfree.mesh.batch_norm import SynchronisedNorms
from bpfree.mesh.draws import DrawsForWholeBatch
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task, weight_of

_TINY = 1e-12
Compute = Callable[[Task, Batch], Scalars]
"""Adds the gradients of a batch to `.grad`, and returns the scalars."""


class Rows:
    """Processes that compute different rows of each batch, and average their gradients.

    Args:
        group: the processes.
        net: the net.
        rule: bound to the net.
        synchronised: True for batch norm by the statistics of the whole batch.
        owned: the ids of the parameters that this process trains; None for all.
    """

    def __init__(
        self, group: Group, net: nn.Module, rule: Rule, *, synchronised: bool, owned: set[int] | None = None
    ) -> None:
        self._group = group
        self._rule = rule
        self._named = [*net.named_parameters(), *rule.named_parameters()]
        # Black-box rules average the scores of members, so that their gradients are equal already.
        self._learned = [p for p in trainable(net, rule) if rule.needs_derivatives and (not owned or id(p) in owned)]
        self._norms = synchronised and any(isinstance(module, _BatchNorm) for module in net.modules())
        self._units: list[list[nn.Parameter]] = []
        if isinstance(rule, LocalRule):
            self._units = [rule.unit(net, index) for index in range(len(rule.segments))]
        self._draws = True  # until a step has shown that the net does not draw random numbers
        self._checked = False

    @property
    def part(self) -> tuple[int, int]:
        """The number of this process, and the number of processes, as `Batches.epoch` takes them."""
        return self._group.rank, self._group.size

    def step(
        self, compute: Compute, task: Task, batch: Batch, flag: bool, total: int | None = None
    ) -> tuple[Scalars, bool]:
        """Add the gradients of the whole batch to `.grad`, with the same bits in all processes.

        Args:
            compute: adds the gradients of some rows.
            task: the task.
            batch: the whole batch, the same in all processes; or, with `total`, the rows of this process.
            flag: something that this process tells the others.
            total: B, of the whole batch. None: `batch` is the whole batch.

        Returns:
            The scalars of the rows of this process, and True if any process told the flag.
        """
        share = Share.of(self._group, total or len(batch.y))
        own = batch if total else Batch(apply(batch.x, lambda x: x[share.rows]), batch.y[share.rows])
        average = Average(self._group, share.weight)
        with ExitStack() as stack:
            stack.enter_context(sharing(share))
            if self._norms:
                stack.enter_context(SynchronisedNorms(share))
            draws = stack.enter_context(DrawsForWholeBatch(share)) if self._draws else None
            with self._parts_sent(average):
                scalars = compute(task_of_rows(task, own, share), own)
        if draws is not None:  # a look at every operation takes time, so only nets that draw numbers have it
            self._draws = draws.drew
        if not self._checked:
            refuse_different(self._group, self._named)
            self._checked = True
        return scalars, average.finish(self._learned, flag)

    @contextmanager
    def _parts_sent(self, average: Average) -> Iterator[None]:
        """Send gradients as soon as they are complete, while others are computed: by segment, or on the way back."""
        rule = self._rule
        if not isinstance(rule, LocalRule):
            with ExitStack() as hooks:
                for p in self._learned if rule.one_backward else []:
                    hooks.callback(p.register_post_accumulate_grad_hook(lambda done: average.start([done])).remove)  # type: ignore[no-untyped-call]
                yield
            return
        fused = rule.segment_done

        def done(index: int) -> None:
            average.start(self._units[index])
            if fused is not None:  # it uses the gradients up, so they must have come
                average.send()
                average.wait()
                fused(index)

        rule.segment_done = done
        try:
            yield
        finally:
            rule.segment_done = fused


def task_of_rows(task: Task, own: Batch, share: Share) -> Task:
    """Return the task for the rows of a process: its means count so that their average is that of the whole batch.

    Means differ from means over samples if samples have weights, such as those of their classes.

    Args:
        task: the task.
        own: the rows of this process.
        share: which rows these are.
    """
    if not isinstance(weight_of(task, "loss", own), Tensor):
        return task

    factors: dict[str, Tensor] = {}

    def factor(metric: str) -> Tensor:
        if metric not in factors:
            part = torch.as_tensor(weight_of(task, metric, own)).double()
            factors[metric] = part / share.group.sum_(part.clone()).clamp_min(_TINY) / share.weight
        return factors[metric]

    factor("loss")  # now, and not in the middle of a pass that a rule transforms
    return _TaskOfRows(task, factor)


class _TaskOfRows:
    """A task whose means over some rows are multiplied by factors."""

    def __init__(self, task: Task, factor: Callable[[str], Tensor]) -> None:
        self._task: Any = task
        self._factor = factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        loss: Tensor = self._task.loss(out, batch) * self._factor("loss")
        return loss

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        return {name: value * self._factor(name) for name, value in self._task.metrics(out, batch).items()}

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        others = self._task.other_metrics(out, batch)
        return {name: value * self._factor(name) for name, value in others.items()}
