"""Several labels for each sample, each of which is true or false."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.preprocess import Preprocess
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.tasks.base import DataTask, Weights, balanced, check_smoothing, custom_parts, form_of, widened
from bpfree.tasks.classify import given_weights
from bpfree.types import Batch, Scalars


class Multilabel(DataTask):
    """Binary cross-entropy on logits [B, C], one for each label; y [B, C] holds 0 or 1.

    The metrics are the loss and the accuracy, which is the share of single labels that are predicted correctly. Over a
    split they are also `micro_f1` (F1 of all labels together) and `macro_f1` (the mean of the F1 of each label).

    Args:
        classes: C, at least 1.
        label_smoothing: s, from 0 to below 1; the target of a label is y (1 - s) + s / 2.
        positive_weights: C numbers; the term of a label that is true counts that many times, as `pos_weight` in torch.
            None for 1 each.

    Raises:
        UserError: an option is out of range.
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
        """Make the task for a data set.

        Args:
            data: the preprocessing of the data set, with the facts about its labels.
            label_smoothing: s, from 0 to below 1.
            positive_weights: "balanced" is, for each label, the number of samples without it divided by the number of
                samples with it.

        Raises:
            UserError: labels are not [N, C], a label has no sample, or an option is out of range.
        """
        facts = data.labels
        if facts.answer_shape != (data.classes,):
            raise UserError(
                f"task: found 'multilabel' on labels of shape {list(facts.answer_shape)}, allowed: a 0 or 1 for each "
                "of C labels, [N, C]. For one class for each sample use task=classify"
            )
        if positive_weights == "balanced":
            balanced(facts.class_counts, facts.samples, "positive_weights")  # refuses a label without samples
            positive_weights = [(facts.samples - count) / count for count in facts.class_counts]
        return cls(data.classes, label_smoothing=label_smoothing, positive_weights=positive_weights)

    @property
    def dim(self) -> int:
        """The width C of the output."""
        return self.classes

    @property
    def custom_loss(self) -> str:
        """A description of how the loss differs from the plain one, in words; see `DataTask`."""
        return super().custom_loss or custom_parts(
            **{"task.positive_weights": self.positive_weights, "task.label_smoothing": self.label_smoothing}
        )

    def prepare(self, split: Split) -> Split:
        """Return the split with labels as floating numbers 0 and 1."""
        return Split(split.x, split.y.float())

    def target(self, batch: Batch) -> Tensor:
        """Return the labels [B, C], 0 or 1, in the floating type of x."""
        return batch.y.to(batch.dtype)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return logits [B, C], in float32 or wider.

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
                "For one class for each sample use task=classify"
            )
        return widened(out)

    def check_batch(self, batch: Batch) -> None:
        """Raise UserError unless all labels are from 0 to 1."""
        low, high = float(batch.y.min()), float(batch.y.max())
        if low < 0 or high > 1:
            raise UserError(f"labels: found values from {low:g} to {high:g}, allowed with task=multilabel: 0 and 1")

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean over samples and labels; see the class for weights and smoothing."""
        y = batch.y.to(out.dtype)
        if self.label_smoothing:
            # torch's binary cross-entropy has no smoothing. Each label has two answers, so each answer gets s / 2.
            y = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = None if self.positive_weights is None else self.positive_weights.like(out)
        return F.binary_cross_entropy_with_logits(out, y, pos_weight=weights)

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return `accuracy`, a mean over samples and labels."""
        right = self.decode(out) == (batch.y > 0.5)
        return {"accuracy": right.float().mean()}

    def tally(self, net: nn.Module | None) -> "LabelCounts":
        """Return an empty tally for `micro_f1` and `macro_f1`."""
        return LabelCounts(self)

    def decode(self, out: Tensor) -> Tensor:
        """Return True for each label that is more likely true than false, bool [N, C]."""
        return out > 0  # sigmoid(out) > 0.5

    def probabilities(self, out: Tensor) -> Tensor:
        """Return the probability of each label, [N, C]. They are independent and need not sum to 1."""
        return out.sigmoid()


class LabelCounts:
    """Counts for each label of a split: how often it is true, is predicted, and both.

    Args:
        task: decodes the outputs.
    """

    def __init__(self, task: Multilabel) -> None:
        self.task = task
        self.table = torch.zeros(3, task.classes, dtype=torch.int64)  # right, predicted, true

    def add(self, out: Tensor, batch: Batch) -> None:
        """Count the labels of a batch."""
        predicted, true = self.task.decode(out.detach()), batch.y > 0.5
        self.table = self.table.to(true.device) + torch.stack(
            [(predicted & true).sum(0), predicted.sum(0), true.sum(0)]
        )

    def metrics(self) -> dict[str, float]:
        """Return F1 = 2 right / (predicted + true). Labels that never occur and are never predicted do not count."""
        right, predicted, true = self.table.double()
        either = predicted + true
        # A label that nobody uses has 0 / 0. It becomes 0 / 1 in the sum, and does not count in the divisor.
        macro = (2 * right / either.clamp_min(1)).sum() / (either > 0).sum().clamp_min(1)
        return {"micro_f1": float(2 * right.sum() / either.sum().clamp_min(1)), "macro_f1": float(macro)}
