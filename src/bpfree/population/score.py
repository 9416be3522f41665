"""What a population is judged by, if not by the task's loss: any function of outputs and targets, smooth or not."""

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
    """The share of samples whose highest output is that of their class."""
    return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()


def macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the classes of the F1 score; over those that occur or were predicted."""
    classes = outputs.shape[-1]
    predicted = F.one_hot(outputs.argmax(-1), classes).to(outputs.dtype)
    true = F.one_hot(targets, classes).to(outputs.dtype)
    return class_metrics.macro_f1((predicted * true).sum(0), predicted.sum(0), true.sum(0))


OBJECTIVES: dict[str, ScoreFunction] = {"accuracy": accuracy, "macro_f1": macro_f1}  # each to be maximised


class Score:
    """A score with its direction.

    Args:
        score: a name in OBJECTIVES or a function (outputs, targets) -> score.
        maximize: its direction; may be left out for a name.

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
        """Raise UserError if a named score needs one class for each sample, and the task has none."""
        if self.score in OBJECTIVES.values() and kind_of(task) != "classify":
            name = next(name for name, score in OBJECTIVES.items() if score is self.score)
            raise UserError(
                f"objective: found {name}, which needs one class for each sample, but the task is {kind_of(task)}. "
                "Allowed for it: loss, or a function"
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score, 0-d, turned so that less is better; for a named one, of shares [B, C] the largest is the class."""
        if self.score in OBJECTIVES.values() and targets.dim() == outputs.dim():
            targets = targets.argmax(-1)
        score = self.score(outputs, targets)
        if not isinstance(score, Tensor | Number) or (isinstance(score, Tensor) and score.dim() > 0):
            found = f"the shape {list(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise UserError(f"objective: its score has {found}, allowed: one number for the batch, such as .mean()")
        score = score if isinstance(score, Tensor) else torch.tensor(score, device=outputs.device)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        return -score if self.maximize else score
