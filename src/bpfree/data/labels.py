"""Labels of data: one class for each sample, several at once, one class for each pixel, or numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bpfree.data.files.rows import chunks
from bpfree.errors import UserError

Answers = Literal["class", "several", "pixels", "tokens", "numbers"]
"""What a label is: one class [N], yes or no for each of C classes [N, C], a class for each pixel [N, H, W] or token
[N, T], numbers."""

IGNORED = -100
"""The label of a pixel or token that does not count, as in torch; the default of `task.ignore_index`."""

_MOST_CLASSES = 1 << 24  # below which float32 has every integer
_SHARES = 1e-3  # by which shares may differ from 1 in their sum
_DIMENSIONS: dict[Answers, tuple[int, str]] = {
    "class": (1, "[N]"),
    "several": (2, "[N, C]"),
    "pixels": (3, "[N, H, W]"),
    "tokens": (2, "[N, T]"),
}


@dataclass(frozen=True)
class Labels:
    """The kind of labels that a data set has.

    Args:
        classes: C; 0 if labels are numbers.
        names: a name for each of the C classes, for people to read; None if classes have only numbers.
        answers: what a label is, where there are classes.
        ignored: the label of pixels or tokens that do not count; None if all count.
        time_step: for sequences, how long a step is, in the unit in which predictions are judged (Lyapunov times for
            `lorenz`). 1 counts steps.
        vocabulary: for tokens of a text, how they are made; see `bpfree.data.vocabulary`. None if that is not known.

    Example:
        >>> Labels(2, names=("cat", "dog")).counts(torch.tensor([0, 1, 1]))
        (1, 2)
    """

    classes: int
    names: tuple[str, ...] | None = None
    answers: Answers = "class"
    ignored: int | None = None
    time_step: float = 1.0
    vocabulary: str | None = field(default=None, repr=False)

    @property
    def are_numbers(self) -> bool:
        """True if labels are numbers to be predicted, and not classes."""
        return self.answers == "numbers" or self.classes == 0

    def counts(self, y: Tensor) -> tuple[int, ...]:
        """Count the samples (or pixels) of each class.

        Args:
            y: labels [N], [N, C], [N, H, W] or [N, T].

        Returns:
            C counts, or () if labels are numbers.
        """
        if self.are_numbers:
            return ()
        if self.answers == "several":
            return tuple(y.sum(0).tolist())
        counts = torch.zeros(self.classes, dtype=torch.int64)
        for part in chunks(y):  # labels may lie in a file
            # Ignored pixels are taken out first, because bincount refuses negative labels such as -100.
            counts += torch.bincount(counting_labels(part, self.ignored), minlength=self.classes).cpu()
        return tuple(counts.tolist())

    def check(self, y: Tensor, what: str) -> None:
        """Raise UserError unless labels are of this kind.

        Args:
            y: [N], [N, C], [N, H, W] or [N, T] of int64; floating numbers [N, ...].
            what: the split, for the message, such as "digits (train)".
        """
        if self.are_numbers:
            if not y.is_floating_point() or not bool(y.isfinite().all()):
                raise UserError(
                    f"{what}: labels that are not classes are of type {y.dtype}, allowed: finite floating numbers"
                )
            return
        dimensions, shape = _DIMENSIONS[self.answers]
        if y.dim() != dimensions or y.dtype != torch.int64:
            raise UserError(
                f"{what}: labels have the shape {list(y.shape)} and type {y.dtype}, allowed: {shape} of int64"
            )
        classes = self.classes
        if self.answers == "several":
            if y.shape[1] != classes:
                raise UserError(f"{what}: labels have the shape {list(y.shape)}, allowed: [N, {classes}]")
            classes = 2  # each value is 0 or 1, however many labels there are
        parts = (counting_labels(part, self.ignored) for part in chunks(y))
        limits = [(int(part.min()), int(part.max())) for part in parts if len(part)]
        if not limits:
            raise UserError(
                f"{what}: all {self.answers} have the ignored label {self.ignored}, allowed: at least one that counts"
            )
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        if low < 0 or high >= classes:
            may_ignore = self.answers in ("pixels", "tokens")
            cure = f", or set task.ignore_index={high if high >= classes else low}" if may_ignore else ""
            raise UserError(
                f"{what}: labels run from {low} to {high}, allowed: 0 to {classes - 1} for {classes} classes{cure}"
            )


def read_labels(y: Tensor, answers: Answers, what: str) -> Tensor:
    """Return the labels that a user gave in the form in which data sets keep them.

    Args:
        y: labels of any number type; classes may also be a column [N, 1] or one-hot rows [N, C].
        answers: what they shall be.
        what: the data, for errors, such as "data".

    Returns:
        int64 [N], [N, C], [N, H, W] or [N, T]; floating [N, ...] if the answers are numbers.

    Raises:
        UserError: the labels are something else; the error names the task that would take them.
    """
    where = f"{what} (labels)"
    if answers == "numbers":
        return y.float()
    if answers == "class":
        return _classes(y, where)
    if y.is_floating_point() and bool((y != y.round()).any()):
        allowed = "0 or 1" if answers == "several" else "class numbers 0, 1, 2, ..."
        raise UserError(f"{where}: found {y.dtype} with fractions, allowed: {allowed}")
    y = y.long()
    if answers == "several":
        if y.dim() != 2:
            raise UserError(
                f"{where}: found the shape {list(y.shape)}, allowed with task=multilabel: [N, C], a 0 or 1 for each "
                "of C labels. For one class for each sample use task=classify"
            )
        if bool(((y != 0) & (y != 1)).any()):
            raise UserError(f"{where}: found values from {int(y.min())} to {int(y.max())}, allowed: 0 and 1")
        return y
    if answers == "tokens":
        if y.dim() != 2:
            raise UserError(
                f"{where}: found the shape {list(y.shape)}, allowed with task=language: [N, T], the next token for "
                "each token of a sample"
            )
        return y
    if y.dim() == 4 and y.shape[1] == 1:  # maps with a channel, as image readers give them
        y = y[:, 0]
    if y.dim() != 3:
        raise UserError(
            f"{where}: found the shape {list(y.shape)}, allowed with task=segment: [N, H, W], a class number for each "
            "pixel"
        )
    return y


def _classes(y: Tensor, where: str) -> Tensor:
    """Return one class for each sample, int64 [N]; one-hot rows [N, C] become classes."""
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() == 2 and y.shape[1] > 1:
        refuse_several(y, where)
        if bool((y == y.round()).all()):
            # Rows of integers that are shares with the sum 1 are one-hot.
            return y.argmax(1)
        raise UserError(
            f"{where}: found shares of {y.shape[1]} classes, allowed: one class number for each sample. Give "
            "y.argmax(1), or for numbers task=regress"
        )
    if y.dim() == 3 and not y.is_floating_point():
        raise UserError(
            f"{where}: found the shape {list(y.shape)}, allowed: [N], one class number for each sample. For a class "
            'for each pixel use task="segment"'
        )
    if y.is_floating_point() and bool((y != y.round()).any()):
        raise UserError(
            f"{where}: found {y.dtype} with fractions, allowed: class numbers 0, 1, 2, ... For numbers use "
            'task="regress"'
        )
    # A float32 above 2^24 may already be another number than the user wrote, so it cannot be a class.
    if y.is_floating_point() and y.numel() and float(y.abs().max()) >= _MOST_CLASSES:
        raise UserError(
            f"{where}: found {y.dtype} with the label {float(y.abs().max()):g}, allowed: class numbers below "
            f"{_MOST_CLASSES:,}. numpy.unique(y, return_inverse=True)[1] makes them; to predict numbers use "
            "task=regress"
        )
    return y.long()


def refuse_several(y: Tensor, where: str) -> None:
    """Raise UserError unless each row of y [N, C] consists of shares of C classes: 0 or more, with the sum 1."""
    # In float16 the shares of many classes would not add up to 1.
    rows = y.double()
    bad = ~((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() <= _SHARES))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise UserError(
            f"{where}: found rows of {y.shape[1]} values that are not shares of one class (row {first} has the sum "
            f"{float(rows[first].sum()):g}), allowed with task=classify: a class number for each sample. For several "
            'labels for each sample use task="multilabel"'
        )


def counting_labels(y: Tensor, ignored: int | None) -> Tensor:
    """Return the labels that count as a flat tensor: all labels except `ignored`."""
    flat = y.flatten()
    return flat if ignored is None else flat[flat != ignored]


def count_classes(splits: Sequence[Tensor], answers: Answers, ignored: int | None) -> tuple[int, set[int]]:
    """Return C, and the set of labels that occur.

    Args:
        splits: the labels of each split.
        answers: what a label is.
        ignored: the label of pixels that do not count.
    """
    if answers == "several":
        return splits[0].shape[1], set(range(splits[0].shape[1]))
    labels = {label for y in splits for label in torch.unique(counting_labels(y, ignored)).tolist()}
    return max(labels, default=-1) + 1, labels
