"""Which tasks and losses a rule can train for, and what is said where it cannot."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from bpfree.errors import UserError, no_soft_labels
from bpfree.types import ALL_TASKS, Batch, Task, kind_of

LABELS_ONLY = ("classify",)
"""The tasks of a rule that reads one class label for each sample."""

ANY_LABELS = ("classify", "multilabel", "segment")
"""The tasks of a rule that reads class labels, however many a sample has."""

_VERBS = {
    "sequence": "predict sequences",
    "multilabel": "tell several labels of a sample",
    "segment": "tell the class of each pixel",
}


class Able(Protocol):
    """A rule that tells which tasks, labels and losses it can learn from, as `bpfree.rule.Rule` does."""

    tasks: ClassVar[tuple[str, ...]]
    takes_soft_labels: ClassVar[bool]
    uses_loss: ClassVar[bool]


def check_task(rule: str, able: Sequence[str], task: str) -> None:
    """Raise UserError unless a rule that can do the tasks `able` can do `task`."""
    if task in able:
        return
    from_labels = set(able) <= set(ANY_LABELS) and (task not in ANY_LABELS or tuple(able) == LABELS_ONLY)
    why = "learns from class labels" if from_labels else f"is for the tasks {', '.join(able)}"
    raise UserError(
        f"rule '{rule}' {why}, so it cannot {_VERBS.get(task, task)}. Allowed: rules that learn from the output's "
        "error (backprop, dfa, ...), from local errors (local, mono_forward) or without derivatives (es, eggroll, ...)"
    )


def check_loss(rule: str, uses_loss: bool, custom: str) -> None:
    """Raise UserError if a loss that is not the plain one would reach only some of what a rule trains.

    Args:
        rule: its name.
        uses_loss: see `bpfree.rule.Rule`.
        custom: how the loss differs, see `bpfree.types.Task`; "" if it does not.
    """
    if custom and not uses_loss:
        raise UserError(
            f"rule '{rule}' does not teach all layers by the task's loss, so {custom} would not reach all of them. "
            "Leave that out, or use a rule that learns by the loss, such as backprop, dfa, local, mono_forward, es"
        )


def check_able(rule: Able, task: Task, batch: Batch) -> None:
    """Raise UserError unless a rule can train for a task with labels such as those of the batch."""
    name, kind = type(rule).__name__, kind_of(task)
    if rule.tasks != ALL_TASKS and not hasattr(task, "name") and not hasattr(task, "classes"):
        raise UserError(
            f"task: {type(task).__name__} has no attribute 'classes', but {name} must know what labels are. Give it "
            "`classes`: the number of classes, or None if y is what to rebuild (then also `rebuilds = True`) or numbers"
        )
    check_task(name, rule.tasks, kind)
    check_loss(name, rule.uses_loss, getattr(task, "custom_loss", ""))
    if not rule.takes_soft_labels and kind == "classify" and batch.y.is_floating_point():
        raise no_soft_labels(name)
    if hasattr(task, "check_batch"):
        task.check_batch(batch)
