"""Metrics in which each class counts alike, from the samples of each class that are recognised."""

from typing import Any

import torch
from torch import Tensor

from bpfree.types import Batch

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
