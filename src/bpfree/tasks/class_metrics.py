"""Metrics in which each class counts equally, however many samples it has."""

from typing import Any

import torch
from torch import Tensor

from bpfree.types import Batch

BY_CLASS = ("balanced_accuracy", "macro_f1")  # metrics that differ from accuracy where classes differ in size


def balanced_accuracy(right: Tensor, true: Tensor) -> Tensor:
    """Return the mean, over the classes that occur, of the share of samples that are predicted correctly.

    Args:
        right: [..., C], the number of samples of each class that are predicted correctly.
        true: [..., C], the number of samples of each class.

    Returns:
        [...], from 0 to 1.
    """
    return (right / true.clamp_min(1)).sum(-1) / (true > 0).sum(-1).clamp_min(1)


def macro_f1(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Return the mean of the F1 score, 2 right / (predicted + true), over the classes that occur or are predicted.

    Args:
        right: [..., C], the number of samples of each class that are predicted correctly.
        predicted: [..., C], the number of samples that are predicted to be of each class.
        true: [..., C], the number of samples of each class.

    Returns:
        [...], from 0 to 1.
    """
    either = predicted + true
    return (2 * right / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1).clamp_min(1)


class ClassCounts:
    """Counts for each class of a split: correct samples, predicted samples and true samples, batch by batch.

    Args:
        classes: C.

    Example:
        >>> counts = ClassCounts(2)
        >>> counts.add(torch.tensor([[1.0, 0.0]] * 4), Batch(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1])))
        >>> counts.metrics()["balanced_accuracy"], counts.by_class()["accuracy"]
        (0.5, [1.0, 0.0])
    """

    def __init__(self, classes: int) -> None:
        self.table = torch.zeros(3, classes, dtype=torch.int64)  # right, predicted, true

    def add(self, out: Tensor, batch: Batch) -> None:
        """Count the samples of a batch, for outputs [B, C]."""
        predicted, true = out.argmax(1), batch.y
        self.table = self.table.to(true.device)
        ones = torch.ones_like(true)
        for row, labels, each in zip(
            self.table, (true, predicted, true), ((predicted == true).long(), ones, ones), strict=True
        ):
            # Not bincount: it reads the largest label, so the CPU would wait for the GPU in every batch.
            row.scatter_add_(0, labels, each)

    def metrics(self) -> dict[str, float]:
        """Return the metrics in BY_CLASS."""
        right, predicted, true = self.table.double()
        return {
            "balanced_accuracy": float(balanced_accuracy(right, true)),
            "macro_f1": float(macro_f1(right, predicted, true)),
        }

    def by_class(self) -> dict[str, list[Any]]:
        """Return for each class its `accuracy` (None without samples), and the numbers `count` and `predicted`."""
        right, predicted, true = self.table.tolist()
        shares = [r / n if n else None for r, n in zip(right, true, strict=True)]
        return {"accuracy": shares, "count": true, "predicted": predicted}
