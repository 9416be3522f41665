"""Classification: one class for each sample, by cross-entropy."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.data.labels import refuse_several
from bpfree.data.preprocess import Preprocess
from bpfree.errors import UserError
from bpfree.tasks.base import ClassWeights, DataTask, Weights, balanced, check_smoothing, custom_parts, widened
from bpfree.types import Batch, Scalars

_FEW = 32  # classes; up to here torch's softmax on a CPU is many times faster along the first dimension


class Classify(DataTask):
    """Cross-entropy on class indices [B] or on shares of the classes [B, C]. The metrics are loss and accuracy.

    With class weights w and a label smoothing s, the loss is that of `torch.nn.functional.cross_entropy`. The target of
    a sample of class y is s / C for each class, plus 1 - s for y. The term of class c counts w_c times. The sum over
    the batch is divided by the sum of w_y. A sample with shares of several classes has the mean of their weights.

    Args:
        classes: C, at least 2.
        label_smoothing: s, from 0 to below 1.
        class_weights: w, C numbers; None for 1 each.

    Raises:
        UserError: an option is out of range.

    Example:
        >>> task = Classify(3)
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 2]))
        >>> task.target(batch).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """

    name: ClassVar[str] = "classify"
    classes: int

    def __init__(self, classes: int, *, label_smoothing: float = 0.0, class_weights: Weights | None = None) -> None:
        if classes < 2:
            raise UserError(f"classes: found {classes}, allowed: at least 2")
        check_smoothing(label_smoothing)
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.class_weights = given_weights(class_weights, classes)

    @classmethod
    def of(cls, data: Preprocess, *, label_smoothing: float = 0.0, class_weights: Weights | None = None) -> "Classify":
        """Make the task for a data set.

        Args:
            data: the preprocessing of the data set, with the facts about its labels.
            label_smoothing: s, from 0 to below 1.
            class_weights: w; "balanced" is N / (C n_c) for n_c of N training samples.

        Raises:
            UserError: labels are not one class for each sample, or an option is out of range.
        """
        if data.classes == 0:
            raise UserError("task: found 'classify' on labels that are not classes, allowed: regress, sequence")
        if shape := data.labels.answer_shape:
            several = shape == (data.classes,)
            raise UserError(
                f"task: found 'classify' on labels of shape {list(shape)}, allowed: one class for each "
                f'sample. Use task="{"multilabel" if several else "segment"}"'
            )
        if class_weights == "balanced":
            class_weights = balanced(data.labels.class_counts, sum(data.labels.class_counts), "class_weights")
        return cls(data.classes, label_smoothing=label_smoothing, class_weights=class_weights)

    @property
    def dim(self) -> int:
        """The width C of the output."""
        return self.classes

    @property
    def custom_loss(self) -> str:
        """A description of how the loss differs from the plain one, in words; see `DataTask`."""
        return super().custom_loss or custom_parts(
            **{"task.class_weights": self.class_weights, "task.label_smoothing": self.label_smoothing}
        )

    def target(self, batch: Batch) -> Tensor:
        """Return one-hot labels or shares [B, C] in the floating type of x. The loss adds smoothing."""
        if batch.y.is_floating_point():
            return batch.y.to(batch.dtype)
        return F.one_hot(batch.y, self.classes).to(batch.dtype)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return logits [B, C], in float32 or wider.

        Raises:
            UserError: the output, or shares in place of labels, have another shape.
        """
        if not isinstance(out, Tensor):
            raise UserError(
                f"net: its output is {type(out).__name__}, allowed: one tensor [B, {self.classes}] of scores"
            )
        if out.shape != (len(batch.y), self.classes):
            more = out.dim() == 2 and out.shape[1] > self.classes
            say = f", or say that there are more classes than the labels show (classes={out.shape[-1]})" if more else ""
            raise UserError(
                f"net: its output has the shape {list(out.shape)}, but {self.classes} classes and a batch of "
                f"{len(batch.y)} need [{len(batch.y)}, {self.classes}]. End the net with a layer of {self.classes}{say}"
            )
        if batch.y.is_floating_point() and batch.y.shape != out.shape:
            raise UserError(
                f"labels: found {batch.y.dtype} of shape {list(batch.y.shape)}, allowed: class indices, int64 "
                f"[{len(out)}], or shares of the classes {list(out.shape)}"
            )
        return widened(out)

    def check_batch(self, batch: Batch) -> None:
        """Raise UserError unless labels are class indices [B], or shares [B, C] with the sum 1."""
        if batch.y.dim() == 2 and batch.y.shape[1] == self.classes:
            refuse_several(batch.y, "labels")

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits [B, C]; see the class for weights and smoothing."""
        if batch.y.is_floating_point():
            return self._loss_of_shares(out, batch.y.to(out.dtype))
        if self.class_weights is not None or self.label_smoothing:
            weights = None if self.class_weights is None else self.class_weights.like(out)
            # The sum of torch is divided here, since torch's mean is NaN for a batch whose weights are all 0.
            summed = F.cross_entropy(out, batch.y, weights, label_smoothing=self.label_smoothing, reduction="sum")
            return summed / _total(self.weight("loss", batch))
        if self.classes <= _FEW and out.device.type == "cpu":
            return F.nll_loss(F.log_softmax(out.T, 0).T, batch.y)  # equal to cross_entropy, up to rounding
        return F.cross_entropy(out, batch.y)

    def _loss_of_shares(self, out: Tensor, shares: Tensor) -> Tensor:
        """Return the loss for shares of the classes [B, C], as mixup makes them."""
        if self.class_weights is None:
            return F.cross_entropy(out, shares, label_smoothing=self.label_smoothing)
        # torch divides by B if targets are shares, and not by the weights: one-hot shares would differ from labels.
        weights = self.class_weights.like(out)
        target = (1 - self.label_smoothing) * shares + self.label_smoothing / self.classes
        return -(weights * target * out.log_softmax(1)).sum() / _total((shares @ weights).sum())

    def weight(self, metric: str, batch: Batch) -> Tensor | int:
        """Return the number of samples, or for a loss with class weights the sum of their weights."""
        if metric != "loss" or self.class_weights is None or self.user_loss is not None:
            return len(batch.y)
        # Weights of shares: the mean weight of the classes in them, as in the loss.
        shares = batch.y if batch.y.is_floating_point() else None
        weights = self.class_weights.like(torch.zeros((), device=batch.y.device) if shares is None else shares)
        return weights[batch.y].sum() if shares is None else (shares @ weights).sum()  # [B] or [B, C] @ [C]

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return `accuracy`. For shares, the class with the largest share is the true one."""
        labels = batch.y.argmax(1) if batch.y.is_floating_point() else batch.y  # [B]
        return {"accuracy": (out.argmax(1) == labels).float().mean()}

    def decode(self, out: Tensor) -> Tensor:
        """Return the most likely class, int64 [N]."""
        return out.argmax(1)

    def probabilities(self, out: Tensor) -> Tensor:
        """Return the softmax over the classes, [N, C]."""
        return out.softmax(1)


def given_weights(weights: Weights | None, classes: int, option: str = "class_weights") -> ClassWeights | None:
    """Return the weights of C classes; None for 1 each.

    Args:
        weights: C numbers, or None.
        classes: C.
        option: the name of the task's option, for errors.

    Raises:
        UserError: there are not C numbers, or weights are "balanced", which only `of` can compute from the data.
    """
    if weights is None:
        return None
    if weights == "balanced":
        raise UserError(
            f"{option}: found balanced, which bpfree.fit computes from a data set, allowed here: a list of "
            f"{classes} numbers"
        )
    return ClassWeights([float(weight) for weight in weights], classes, f"task.{option}")


def _total(weight: Tensor | int) -> Tensor | int:
    """Return a sum of weights to divide by; 1 in place of 0, if nothing counts."""
    return weight if isinstance(weight, int) else torch.where(weight > 0, weight, 1)
