"""Scores of members other than the task's loss: any function of outputs and targets, smooth or not."""

from collections.abc import Callable
from numbers import Number

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.errors import UserError, unknown
from bpfree.tasks import class_metrics
from bpfree.types import Task, kind_of

ScoreFunction = Callable[[Tensor, Tensor], Tensor | float]
"""Outputs [B, D], targets [B] or [B, ...] -> a score of the batch."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples whose highest output is the output of their class.

    Args:
        outputs: [B, C].
        targets: class indices [B].
    """
    return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()


def macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean F1 score over the classes that occur or were predicted.

    Args:
        outputs: [B, C].
        targets: class indices [B].
    """
    classes = outputs.shape[-1]
    predicted = F.one_hot(outputs.argmax(-1), classes).to(outputs.dtype)
    true = F.one_hot(targets, classes).to(outputs.dtype)
    return class_metrics.macro_f1((predicted * true).sum(0), predicted.sum(0), true.sum(0))


OBJECTIVES: dict[str, ScoreFunction] = {"accuracy": accuracy, "macro_f1": macro_f1}  # each to be maximised


class Score:
    """A score together with its direction.

    Args:
        score: a name in OBJECTIVES, or a function (outputs, targets) -> score.
        maximize: True if high scores are good. It may be None for a name.

    Raises:
        UserError: an unknown name, or a function without a direction; when called: a score that is not one number.
    """

    def __init__(self, score: str | ScoreFunction, maximize: bool | None) -> None:
        if isinstance(score, str):
            if score not in OBJECTIVES:
                raise unknown("objective", score, [*OBJECTIVES, "loss"])
            self.score, self.maximize = OBJECTIVES[score], maximize is not False
        else:
            if maximize is None:
                raise UserError("maximize: found None, but objective is a function. Allowed: true or false")
            self.score, self.maximize = score, maximize

    def check(self, task: Task) -> None:
        """Raise UserError if a named score needs one class for each sample, and the task does not have one."""
        if self.score in OBJECTIVES.values() and kind_of(task) != "classify":
            name = next(name for name, score in OBJECTIVES.items() if score is self.score)
            raise UserError(
                f"objective: found {name}, which needs one class for each sample, but the task is {kind_of(task)}. "
                "Allowed for it: loss, or a function"
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the score, 0-d, with the sign that makes a lower score better.

        Args:
            outputs: [B, D].
            targets: [B] or [B, ...]. For a named score they may be shares of classes [B, C], as mixup makes them; then
                the class with the largest share counts.
        """
        if self.score in OBJECTIVES.values() and targets.dim() == outputs.dim():
            targets = targets.argmax(-1)
        score = self.score(outputs, targets)
        if not isinstance(score, Tensor | Number) or (isinstance(score, Tensor) and score.dim() > 0):
            value = f"the shape {list(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise UserError(f"objective: its score has {value}, allowed: one number for the batch, such as .mean()")
        score = score if isinstance(score, Tensor) else torch.tensor(score, device=outputs.device)
        # At least float32: in half precision many members would have equal scores.
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        return -score if self.maximize else score
