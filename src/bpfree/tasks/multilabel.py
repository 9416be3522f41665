"""Several labels for a sample, each of them true or false."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.dataset import Preprocess, Split
from bpfree.errors import UserError
from bpfree.tasks.base import DataTask, Weights, balanced, check_smoothing, custom_parts, form_of, widened
from bpfree.tasks.classify import given_weights
from bpfree.types import Batch, Scalars


class Multilabel(DataTask):
    """Binary cross-entropy on logits [B, C], one for each label; y [B, C] holds 0 or 1.

    Metrics are the loss and the accuracy, which is the share of single labels that are right, and over a split
    `micro_f1` (F1 of all labels together) and `macro_f1` (the mean over the labels of their F1).

    Args:
        classes: C.
        label_smoothing: s; the target of a label is y (1 - s) + s / 2.
        positive_weights: C numbers; the term of a label that is true counts that many times, as `pos_weight` of torch.
            None for 1 each.
    """

    name: ClassVar[str] = "multilabel"
    answers = "several"
    classes: int

    def __init__(self, classes: int, *, label_smoothing: float = 0.0, positive_weights: Weights | None = None) -> None:
        if classes < 1:
            raise UserError(f"classes: found {classes}, allowed: at least 1")
        check_smoothing(label_smoothing)
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.positive_weights = given_weights(positive_weights, classes, "positive_weights")

    @classmethod
    def of(
        cls, data: Preprocess, *, label_smoothing: float = 0.0, positive_weights: Weights | None = None
    ) -> "Multilabel":
        """For the labels of a data set; "balanced" weights are the samples without a label by those with it."""
        if data.answer_shape != (data.classes,):
            raise UserError(
                f"task: found 'multilabel' on labels of shape {list(data.answer_shape)}, allowed: a 0 or 1 for each of "
                "C labels, [N, C]. For one class a sample use task=classify"
            )
        if positive_weights == "balanced":
            balanced(data.class_counts, data.samples, "positive_weights")  # refuses a label without samples
            positive_weights = [(data.samples - count) / count for count in data.class_counts]
        return cls(data.classes, label_smoothing=label_smoothing, positive_weights=positive_weights)

    @property
    def dim(self) -> int:
        """C."""
        return self.classes

    @property
    def custom_loss(self) -> str:
        """See `DataTask`."""
        return super().custom_loss or custom_parts(
            **{"task.positive_weights": self.positive_weights, "task.label_smoothing": self.label_smoothing}
        )

    def prepare(self, split: Split) -> Split:
        """Labels as floating numbers 0 and 1."""
        return Split(split.x, split.y.float())

    def target(self, batch: Batch) -> Tensor:
        """The labels [B, C], 0 or 1."""
        return batch.y.to(batch.dtype)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Logits [B, C].

        Raises:
            UserError: the output or the labels have another shape.
        """
        if not isinstance(out, Tensor) or out.shape != (len(batch.y), self.classes):
            raise UserError(
                f"net: its output is {form_of(out)}, but {self.classes} labels and a batch of {len(batch.y)} need "
                f"[{len(batch.y)}, {self.classes}]. End the net with a layer of {self.classes}"
            )
        if batch.y.shape != out.shape:
            raise UserError(
                f"labels: found the shape {list(batch.y.shape)}, allowed: {list(out.shape)}, a 0 or 1 for each label. "
                "For one class a sample use task=classify"
            )
        return widened(out)

    def check_batch(self, batch: Batch) -> None:
        """Raise UserError unless labels are from 0 to 1."""
        low, high = float(batch.y.min()), float(batch.y.max())
        if low < 0 or high > 1:
            raise UserError(f"labels: found values from {low:g} to {high:g}, allowed with task=multilabel: 0 and 1")

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Mean over samples and labels; see the class for weights and smoothing."""
        y = batch.y.to(out.dtype)
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = None if self.positive_weights is None else self.positive_weights.like(out)
        return F.binary_cross_entropy_with_logits(out, y, pos_weight=weights)

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """`loss` and `accuracy`, detached."""
        right = self.decode(out.detach()) == (batch.y > 0.5)
        return {"loss": self.loss(out.detach(), batch), "accuracy": right.float().mean()}

    def tally(self, net: nn.Module | None) -> "LabelCounts":
        """`micro_f1` and `macro_f1`."""
        return LabelCounts(self)

    def decode(self, out: Tensor) -> Tensor:
        """Whether each label is more likely true than false, bool [N, C]."""
        return out > 0

    def probabilities(self, out: Tensor) -> Tensor:
        """The probability of each label by itself, [N, C]."""
        return out.sigmoid()


class LabelCounts:
    """For each label of a split: how often it is true, is said to be true, and both.

    Args:
        task: whose outputs and labels they are.
    """

    def __init__(self, task: Multilabel) -> None:
        self.task = task
        self.table = torch.zeros(3, task.classes, dtype=torch.int64)  # right, said, true

    def add(self, out: Tensor, batch: Batch) -> None:
        """Count the labels of a batch."""
        said, true = self.task.decode(out.detach()), batch.y > 0.5
        self.table = self.table.to(true.device) + torch.stack([(said & true).sum(0), said.sum(0), true.sum(0)])

    def metrics(self) -> dict[str, float]:
        """F1 is 2 right / (said + true); labels that neither occur nor are said are left out of the mean."""
        right, said, true = self.table.double()
        either = said + true
        macro = (2 * right / either.clamp_min(1)).sum() / (either > 0).sum().clamp_min(1)
        return {"micro_f1": float(2 * right.sum() / either.sum().clamp_min(1)), "macro_f1": float(macro)}
