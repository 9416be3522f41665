"""Segmentation: a class for each pixel."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.labels import IGNORED
from bpfree.data.preprocess import Preprocess
from bpfree.errors import UserError
from bpfree.tasks.base import DataTask, Weights, balanced, check_smoothing, custom_parts, form_of, widened
from bpfree.tasks.classify import given_weights
from bpfree.types import Batch, Scalars


class Segment(DataTask):
    """Cross-entropy of logits [B, C, H, W] for the class of each pixel, y [B, H, W].

    The metrics are the loss and the accuracy, which is the share of pixels that are predicted correctly. Over a split
    there is also `mean_iou`: the mean over the classes of intersection / union, where one set is the pixels of a class
    and the other the pixels that are predicted to be of the class.

    Args:
        classes: C, at least 2.
        size: (H, W) of the labels, in pixels.
        ignore_index: the label of pixels that count neither for the loss nor for a metric.
        label_smoothing: see `Classify`.
        class_weights: see `Classify`; None for 1 each.

    Raises:
        UserError: an option is out of range.
    """

    name: ClassVar[str] = "segment"
    answers = "pixels"
    classes: int
    pixels: tuple[int, int]

    def __init__(
        self,
        classes: int,
        size: Sequence[int],
        *,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        class_weights: Weights | None = None,
    ) -> None:
        if classes < 2:
            raise UserError(f"classes: found {classes}, allowed: at least 2")
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"size: found {list(size)}, allowed: height and width of the labels")
        check_smoothing(label_smoothing)
        self.classes = classes
        self.pixels = (size[0], size[1])
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_weights = given_weights(class_weights, classes)

    @classmethod
    def of(
        cls,
        data: Preprocess,
        *,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        class_weights: Weights | None = None,
    ) -> "Segment":
        """Make the task for a data set.

        Args:
            data: the preprocessing of the data set, with the facts about its labels.
            ignore_index: the label of pixels that do not count.
            label_smoothing: see `Classify`.
            class_weights: "balanced" is N / (C n_c) for n_c of the N pixels that count in training.

        Raises:
            UserError: labels are not a class for each pixel, or an option is out of range.
        """
        facts = data.labels
        if data.classes == 0 or len(facts.answer_shape) != 2:
            raise UserError(
                f"task: found 'segment' on labels of shape {list(facts.answer_shape)}, allowed: a class for each "
                "pixel, [N, H, W] of integers. For one class for each sample use task=classify"
            )
        if class_weights == "balanced":
            class_weights = balanced(facts.class_counts, sum(facts.class_counts), "class_weights")
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return cls(data.classes, facts.answer_shape, class_weights=class_weights, **options)  # type: ignore[arg-type]

    @property
    def dim(self) -> int:
        """The number of scores C*H*W of a sample."""
        return self.classes * self.pixels[0] * self.pixels[1]

    @property
    def custom_loss(self) -> str:
        """A description of how the loss differs from the plain one, in words; see `DataTask`."""
        return super().custom_loss or custom_parts(
            **{"task.class_weights": self.class_weights, "task.label_smoothing": self.label_smoothing}
        )

    @property
    def takes_target(self) -> bool:
        """False: the target is flat, and the loss needs the place of each pixel."""
        return False

    def target(self, batch: Batch) -> Tensor:
        """Return one-hot pixels [B, C*H*W] in the floating type of x. Pixels that do not count are 0 for each class."""
        counts = batch.y != self.ignore_index
        labels = batch.y.where(counts, 0).unsqueeze(1)  # [B, 1, H, W]; any class serves where nothing counts
        shape = (len(batch.y), self.classes, *self.pixels)
        hot = torch.zeros(shape, dtype=batch.dtype, device=batch.y.device)
        # Not F.one_hot: it makes int64 values of eight bytes each, and its classes are the last dimension.
        return hot.scatter_(1, labels, counts.unsqueeze(1).to(batch.dtype)).flatten(1)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return logits [B, C, H, W] in float32 or wider; an output [B, C*H*W] is brought to that shape.

        Raises:
            UserError: the output or the labels have another shape.
        """
        if batch.y.is_floating_point() or batch.y.shape[1:] != self.pixels:
            raise UserError(
                f"labels: found {batch.y.dtype} of shape {list(batch.y.shape)}, allowed with task=segment: class "
                f"indices, int64 [{len(batch.y)}, {self.pixels[0]}, {self.pixels[1]}]"
            )
        shape = (len(batch.y), self.classes, *self.pixels)
        if not isinstance(out, Tensor) or out.shape not in (shape, (len(batch.y), self.dim)):
            raise UserError(
                f"net: its output is {form_of(out)}, but {self.classes} classes for each pixel need {list(shape)}. End "
                f"the net with a convolution of {self.classes} channels, and bring its output to the size of the "
                "labels, such as by torch.nn.functional.interpolate"
            )
        return widened(out.reshape(shape))

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the pixels that count; see `Classify` for weights and smoothing."""
        weights = None if self.class_weights is None else self.class_weights.like(out)
        options = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing, "reduction": "sum"}
        # Divided here: torch's own mean is NaN for a batch in which no pixel counts.
        summed = F.cross_entropy(out, batch.y, weights, **options)  # type: ignore[arg-type]
        total = self.weight("loss", batch)
        return summed / torch.where(total > 0, total, 1)

    def weight(self, metric: str, batch: Batch) -> Tensor:
        """Return the number of pixels that count, or for a loss with class weights the sum of their weights."""
        counts = batch.y != self.ignore_index
        if metric != "loss" or self.class_weights is None or self.user_loss is not None:
            return counts.sum()
        weights = self.class_weights.like(torch.zeros((), device=batch.y.device))
        # The label of pixels that do not count may not be an index. They read the weight of class 0, times 0.
        return (weights[batch.y.where(counts, 0)] * counts).sum()

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return `accuracy` of the pixels that count."""
        counts = batch.y != self.ignore_index
        right = (self.decode(out) == batch.y) & counts
        return {"accuracy": right.sum() / counts.sum().clamp_min(1)}

    def tally(self, net: nn.Module | None) -> "Overlaps":
        """Return an empty tally for `mean_iou`."""
        return Overlaps(self)

    def decode(self, out: Tensor) -> Tensor:
        """Return the most likely class of each pixel, int64 [N, H, W]."""
        return self._maps(out).argmax(1)

    def probabilities(self, out: Tensor) -> Tensor:
        """Return the softmax over the classes of each pixel, [N, C, H, W]."""
        return self._maps(out).softmax(1)

    def _maps(self, out: Tensor) -> Tensor:
        return out.reshape(out.shape[0], self.classes, *self.pixels)


class Overlaps:
    """Counts for each class of a split: how many pixels are of the class, are predicted to be, and both.

    Args:
        task: decodes the outputs.
    """

    def __init__(self, task: Segment) -> None:
        self.task = task
        self.table = torch.zeros(3, task.classes, dtype=torch.int64)  # right, predicted, true

    def add(self, out: Tensor, batch: Batch) -> None:
        """Count the pixels of a batch."""
        counts = batch.y != self.task.ignore_index
        predicted, true = self.task.decode(out.detach())[counts], batch.y[counts]
        rows = (true[predicted == true], predicted, true)
        sums = torch.stack([torch.bincount(row, minlength=self.task.classes) for row in rows])  # [3, C]
        self.table = self.table.to(sums.device) + sums

    def metrics(self) -> dict[str, float]:
        """Return the mean of right / (predicted + true - right) over the classes that occur or are predicted."""
        right, predicted, true = self.table.double()
        # |A or B| = |A| + |B| - |A and B|.
        union = predicted + true - right
        return {"mean_iou": float((right / union.clamp_min(1)).sum() / (union > 0).sum().clamp_min(1))}
