"""How well outputs fit a split."""

from collections.abc import Callable

import torch
from torch import Tensor

from bpfree.data import Batches
from bpfree.types import Task


def mean_metrics(
    task: Task, batches: Batches, outputs: Callable[[Tensor], dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """The task's metrics of each output, means over all samples.

    Args:
        task: gives the metrics.
        batches: of the split.
        outputs: of samples x [B, ...]: by name, what is to be judged, [B, D].
    """
    sums: dict[str, dict[str, Tensor]] = {}
    samples = 0
    for batch in batches.epoch():
        for name, out in outputs(batch.x).items():
            own = sums.setdefault(name, {})
            for metric, value in task.metrics(out, batch).items():
                own[metric] = own.get(metric, torch.zeros_like(value)) + value * len(batch.y)
        samples += len(batch.y)
    return {name: {metric: float(value) / samples for metric, value in own.items()} for name, own in sums.items()}
