"""Check that a rule can train for a task and a loss, with an error that names rules that can."""

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
    "language": "predict the next token",
    "multilabel": "predict several labels for each sample",
    "segment": "predict the class of each pixel",
}


class Able(Protocol):
    """A rule that says which tasks, labels and losses it can learn from, as `bpfree.rule.Rule` does."""

    tasks: ClassVar[tuple[str, ...]]
    takes_soft_labels: ClassVar[bool]
    uses_loss: ClassVar[bool]


def check_task(rule: str, able: Sequence[str], task: str) -> None:
    """Raise UserError if a rule cannot train for a task.

    Args:
        rule: the name of the rule, for the message.
        able: the tasks that the rule can train for.
        task: the task, a name in `bpfree.tasks.TASKS`.
    """
    if task in able:
        return
    from_labels = set(able) <= {*ANY_LABELS, "language"} and (task not in ANY_LABELS or tuple(able) == LABELS_ONLY)
    why = "learns from class labels" if from_labels else f"is for the tasks {', '.join(able)}"
    raise UserError(
        f"rule '{rule}' {why}, so it cannot {_VERBS.get(task, task)}. Allowed: rules that learn from the output's "
        "error (backprop, dfa, ...), from local errors (local, mono_forward) or without derivatives (es, eggroll, ...)"
    )


def check_loss(rule: str, uses_loss: bool, custom: str) -> None:
    """Raise UserError if a changed loss would reach only some of the layers that a rule trains.

    Args:
        rule: the name of the rule, for the message.
        uses_loss: whether the rule teaches all layers by the task's loss; see `bpfree.rule.Rule`.
        custom: how the loss differs from the plain one, see `bpfree.types.Task`; "" if it does not differ.
    """
    if custom and not uses_loss:
        raise UserError(
            f"rule '{rule}' does not teach all layers by the task's loss, so {custom} would not reach all of them. "
            "Leave that out, or use a rule that learns by the loss, such as backprop, dfa, local, mono_forward, es"
        )


def check_able(rule: Able, task: Task, batch: Batch) -> None:
    """Raise UserError if a rule cannot train for a task with labels like those of a batch.

    Args:
        rule: the rule.
        task: the task, which may be the user's own.
        batch: a first batch, whose labels are checked.
    """
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
    # The user's task need not have this method, because the protocol `Task` does not ask for it.
    if hasattr(task, "check_batch"):
        task.check_batch(batch)
