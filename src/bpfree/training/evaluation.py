"""How well outputs fit a split: means over its samples and, of classes, figures in which each class counts alike."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.inputs import Inputs
from bpfree.tasks.base import DataTask
from bpfree.tasks.class_metrics import ClassCounts
from bpfree.tasks.classify import Classify
from bpfree.types import Batch, Task, weight_of

_TINY = 1e-12


class Evaluation(NamedTuple):
    """What comes of a split.

    Attributes:
        metrics: the task's, means over all samples; then those in BY_CLASS, if the task is to tell classes, or those
            of the task's tally.
        classes: what they were counted from; None if there are no classes.
    """

    metrics: dict[str, float]
    classes: ClassCounts | None


def evaluate_split(
    task: Task, batches: Iterable[Batch], predict: Callable[[Inputs], Tensor], net: nn.Module | None = None
) -> Evaluation:
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
    return Evaluation(metrics if tally is None else metrics | tally.metrics(), classes)


def class_summary(task: Task, labels: Tensor, test: Evaluation | None) -> dict[str, Any]:
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
