"""How well outputs fit a split: means over its samples and, of classes, figures in which each class counts alike."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.inputs import Inputs
from bpfree.tasks.base import DataTask
from bpfree.tasks.classify import Classify
from bpfree.types import Batch, Task, weight_of

_TINY = 1e-12

BY_CLASS = ("balanced_accuracy", "macro_f1")  # metrics that differ from accuracy where classes differ in size


def balanced_accuracy(right: Tensor, true: Tensor) -> Tensor:
    """The mean over the classes of the share that is right; over those that occur.

    Args:
        right, true: [..., C], how many samples of each class are recognised, and how many there are.
    """
    return (right / true.clamp_min(1)).sum(-1) / (true > 0).sum(-1).clamp_min(1)


def macro_f1(right: Tensor, said: Tensor, true: Tensor) -> Tensor:
    """The mean over the classes of the F1 score, 2 right / (said + true); over those that occur or were predicted.

    Args:
        right, said, true: [..., C], how many samples of each class are recognised, how many are taken for it, and how
            many there are.
    """
    either = said + true
    return (2 * right / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1).clamp_min(1)


class ClassCounts:
    """Of each class of a split how many samples there are, are taken for it, and are both: counted batch by batch.

    Args:
        classes: C.

    Example:
        >>> counts = ClassCounts(2)
        >>> counts.add(torch.tensor([[1.0, 0.0]] * 4), Batch(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1])))
        >>> counts.metrics()["balanced_accuracy"], counts.by_class()["accuracy"]
        (0.5, [1.0, 0.0])
    """

    def __init__(self, classes: int) -> None:
        self.table = torch.zeros(3, classes, dtype=torch.int64)  # right, said, true

    def add(self, out: Tensor, batch: Batch) -> None:
        """Count the samples of a batch; out [B, C]."""
        said, true = out.argmax(1), batch.y
        self.table = self.table.to(true.device)
        ones = torch.ones_like(true)
        for row, labels, each in zip(self.table, (true, said, true), ((said == true).long(), ones, ones), strict=True):
            row.scatter_add_(0, labels, each)

    def metrics(self) -> dict[str, float]:
        """Those in BY_CLASS."""
        right, said, true = self.table.double()
        return {
            "balanced_accuracy": float(balanced_accuracy(right, true)),
            "macro_f1": float(macro_f1(right, said, true)),
        }

    def by_class(self) -> dict[str, list[Any]]:
        """`accuracy` (None for a class without samples), `count` of samples and `predicted`, how many were taken so."""
        right, said, true = self.table.tolist()
        shares = [r / n if n else None for r, n in zip(right, true, strict=True)]
        return {"accuracy": shares, "count": true, "predicted": said}


class Judgement(NamedTuple):
    """What comes of a split.

    Attributes:
        metrics: the task's, means over all samples; then those in BY_CLASS, if the task is to tell classes, or those
            of the task's tally.
        classes: what they were counted from; None if there are no classes.
    """

    metrics: dict[str, float]
    classes: ClassCounts | None


def judge(
    task: Task, batches: Iterable[Batch], predict: Callable[[Inputs], Tensor], net: nn.Module | None = None
) -> Judgement:
    """The metrics of predictions.

    Args:
        task: gives them.
        batches: of the split.
        predict: samples x [B, ...] -> outputs [B, D].
        net: that predicts, for tasks that ask it for more.
    """
    classes = ClassCounts(task.classes) if isinstance(task, Classify) else None
    tally = classes or (task.tally(net) if isinstance(task, DataTask) else None)
    seen = (lambda out, batch: None) if tally is None else tally.add
    metrics = mean_metrics(task, batches, lambda x: {"": predict(x)}, seen)[""]
    return Judgement(metrics if tally is None else metrics | tally.metrics(), classes)


def told_by_class(task: Task, labels: Tensor, test: Judgement | None) -> dict[str, Any]:
    """For result.json: how many training samples there were, also `by_class`, and how each class fared in the test.

    Args:
        task: of the run.
        labels: of the training samples, [N, ...].
        test: what came of the test split; None if there is none.
    """
    told: dict[str, Any] = {"train_samples": {"count": len(labels)}}
    if isinstance(task, Classify):
        told["train_samples"]["by_class"] = torch.bincount(labels, minlength=task.classes).tolist()
    return told if test is None or test.classes is None else told | {"classes": test.classes.by_class()}


def mean_metrics(
    task: Task,
    batches: Iterable[Batch],
    outputs: Callable[[Inputs], dict[str, Tensor]],
    seen: Callable[[Tensor, Batch], None] = lambda out, batch: None,
) -> dict[str, dict[str, float]]:
    """The task's metrics of each output, means over all samples; see `DataTask.weight`.

    Args:
        task: gives the metrics.
        batches: of the split.
        outputs: of samples x [B, ...]: by name, what is to be judged, [B, D].
        seen: told each output and its batch.
    """
    sums: dict[str, dict[str, tuple[Any, Any]]] = {}  # of each metric times its weight, and of the weights
    for batch in batches:
        for name, out in outputs(batch.x).items():
            own = sums.setdefault(name, {})
            for metric, value in task.metrics(out, batch).items():
                weight = weight_of(task, metric, batch)
                total, weights = own.get(metric, (0.0, 0.0))
                own[metric] = total + value * weight, weights + weight
            seen(out, batch)
    return {
        name: {metric: float(total) / max(float(weights), _TINY) for metric, (total, weights) in own.items()}
        for name, own in sums.items()
    }
