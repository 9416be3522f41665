"""Metrics of a split: means over its samples, and for classes figures in which each class counts the same."""

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
    """The result of an evaluation of one split.

    Attributes:
        metrics: the task's metrics, as means over all samples. For classes also those of `ClassCounts`, for other tasks
            those of the task's tally.
        classes: the counts by class; None if the task does not have classes.
    """

    metrics: dict[str, float]
    classes: ClassCounts | None


def evaluate_split(
    task: Task, batches: Iterable[Batch], predict: Callable[[Inputs], Tensor], net: nn.Module | None = None
) -> Evaluation:
    """Return the metrics of predictions on a split.

    Args:
        task: computes the metrics.
        batches: the batches of the split.
        predict: a function from samples x [B, ...] to outputs [B, D].
        net: the net that predicts, for tasks that run it once more; `sequence` lets it continue a series by itself.
    """
    classes = ClassCounts(task.classes) if isinstance(task, Classify) else None
    tally = classes or (task.tally(net) if isinstance(task, DataTask) else None)
    on_output = (lambda out, batch: None) if tally is None else tally.add
    metrics = mean_metrics(task, batches, lambda x: {"": predict(x)}, on_output)[""]
    return Evaluation(metrics if tally is None else metrics | tally.metrics(), classes)


def class_summary(task: Task, labels: Tensor, test: Evaluation | None) -> dict[str, Any]:
    """Return the entries of result.json about samples and classes.

    Args:
        task: the task of the run.
        labels: the labels of the training samples, [N, ...].
        test: the evaluation of the test split; None without a test split.

    Returns:
        `train_samples`: their `count` and, for classes, the count `by_class`. `classes`: the figures of each class in
        the test.
    """
    samples: dict[str, Any] = {"count": len(labels)}
    if isinstance(task, Classify):
        samples["by_class"] = torch.bincount(labels, minlength=task.classes).tolist()
    summary = {"train_samples": samples}
    return summary if test is None or test.classes is None else summary | {"classes": test.classes.by_class()}


def mean_metrics(
    task: Task,
    batches: Iterable[Batch],
    outputs: Callable[[Inputs], dict[str, Tensor]],
    on_output: Callable[[Tensor, Batch], None] = lambda out, batch: None,
) -> dict[str, dict[str, float]]:
    """Return the task's metrics of each output, as means over all samples.

    Args:
        task: computes the metrics. Its `weight` says how much a batch counts; see `bpfree.types.weight_of`.
        batches: the batches of the split.
        outputs: a function from samples x [B, ...] to named outputs [B, D].
        on_output: called with each output and its batch.

    Returns:
        By name of the output, the value of each metric.
    """
    # By output and metric: the sum of value times weight, and the sum of weights. They stay on the device until the
    # end, since reading a number makes a GPU wait.
    sums: dict[str, dict[str, tuple[Any, Any]]] = {}
    for batch in batches:
        for name, out in outputs(batch.x).items():
            by_metric = sums.setdefault(name, {})
            for metric, value in task.metrics(out, batch).items():
                weight = weight_of(task, metric, batch)
                total, weights = by_metric.get(metric, (0.0, 0.0))
                by_metric[metric] = total + value * weight, weights + weight
            on_output(out, batch)
    return {
        name: {metric: float(total) / max(float(weights), _TINY) for metric, (total, weights) in by_metric.items()}
        for name, by_metric in sums.items()
    }
