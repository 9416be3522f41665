"""Labels from Python: one class for each sample, several at once, one for each pixel, or numbers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bpfree.errors import UserError

Answers = Literal["class", "several", "pixels", "numbers"]
"""What a label is: one class [N], yes or no for each of C classes [N, C], a class for each pixel [N, H, W], numbers."""

IGNORED = -100
"""The label of a pixel that does not count, as in torch; the default of `task.ignore_index`."""

_MOST_CLASSES = 1 << 24  # below which float32 has every integer
_SHARES = 1e-3  # by which shares may differ from 1 in their sum


def read_labels(y: Tensor, answers: Answers, what: str) -> Tensor:
    """Labels as they are kept: int64 [N], [N, C] or [N, H, W]; floating numbers [N, ...].

    Args:
        y: as the user gave them.
        answers: what they are to be.
        what: for errors, such as "data".

    Raises:
        UserError: they are something else; the error names the task that would take them.
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
                "of C labels. For one class a sample use task=classify"
            )
        if bool(((y != 0) & (y != 1)).any()):
            raise UserError(f"{where}: found values from {int(y.min())} to {int(y.max())}, allowed: 0 and 1")
        return y
    if y.dim() == 4 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() != 3:
        raise UserError(
            f"{where}: found the shape {list(y.shape)}, allowed with task=segment: [N, H, W], a class number for each "
            "pixel"
        )
    return y


def _classes(y: Tensor, where: str) -> Tensor:
    """One class for each sample, int64 [N]; one-hot rows [N, C] are read as classes."""
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() == 2 and y.shape[1] > 1:
        refuse_several(y, where)
        if bool((y == y.round()).all()):
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
    if y.is_floating_point() and y.numel() and float(y.abs().max()) >= _MOST_CLASSES:
        raise UserError(
            f"{where}: found {y.dtype} with the label {float(y.abs().max()):g}, allowed: class numbers below "
            f"{_MOST_CLASSES:,}. numpy.unique(y, return_inverse=True)[1] makes them; to predict numbers use "
            "task=regress"
        )
    return y.long()


def refuse_several(y: Tensor, where: str) -> None:
    """Raise UserError unless each row of y [N, C] consists of shares of C classes: 0 or more, with the sum 1."""
    rows = y.double()
    bad = ~((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() <= _SHARES))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise UserError(
            f"{where}: found rows of {y.shape[1]} values that are not shares of one class (row {first} has the sum "
            f"{float(rows[first].sum()):g}), allowed with task=classify: a class number for each sample. For several "
            'labels a sample use task="multilabel"'
        )


def known_labels(y: Tensor, ignored: int | None) -> Tensor:
    """The labels that count, flat: all, without those of pixels that are `ignored`."""
    flat = y.flatten()
    return flat if ignored is None else flat[flat != ignored]


def count_classes(splits: Sequence[Tensor], answers: Answers, ignored: int | None) -> tuple[int, set[int]]:
    """C and the labels that occur in the labels of all splits."""
    if answers == "several":
        return splits[0].shape[1], set(range(splits[0].shape[1]))
    labels = {label for y in splits for label in torch.unique(known_labels(y, ignored)).tolist()}
    return max(labels, default=-1) + 1, labels


def class_counts(y: Tensor, classes: int, answers: Answers, ignored: int | None) -> tuple[int, ...]:
    """Count the samples (or pixels) of each class; the result is () where there are no classes."""
    if answers == "numbers" or classes == 0:
        return ()
    if answers == "several":
        return tuple(y.sum(0).tolist())
    return tuple(torch.bincount(known_labels(y, ignored), minlength=classes).tolist())


def check_labels(y: Tensor, classes: int, answers: Answers, ignored: int | None, what: str) -> None:
    """Raise UserError unless labels of a data set are what they are said to be.

    Args:
        y: [N], [N, C] or [N, H, W], int64; floating numbers [N, ...].
        classes: C.
        answers: what they are.
        ignored: the label of pixels that do not count.
        what: for errors.
    """
    if answers == "numbers" or classes == 0:
        if not y.is_floating_point() or not bool(y.isfinite().all()):
            raise UserError(
                f"{what}: labels that are not classes are of type {y.dtype}, allowed: finite floating numbers"
            )
        return
    dims = {"class": 1, "several": 2, "pixels": 3}[answers]
    if y.dim() != dims or y.dtype != torch.int64:
        shape = {"class": "[N]", "several": "[N, C]", "pixels": "[N, H, W]"}[answers]
        raise UserError(f"{what}: labels have the shape {list(y.shape)} and type {y.dtype}, allowed: {shape} of int64")
    if answers == "several":
        if y.shape[1] != classes:
            raise UserError(f"{what}: labels have the shape {list(y.shape)}, allowed: [N, {classes}]")
        classes = 2
    counting = known_labels(y, ignored)
    if not len(counting):
        raise UserError(f"{what}: all pixels have the ignored label {ignored}, allowed: at least one that counts")
    low, high = int(counting.min()), int(counting.max())
    if low < 0 or high >= classes:
        cure = f", or set task.ignore_index={high if high >= classes else low}" if answers == "pixels" else ""
        raise UserError(
            f"{what}: labels run from {low} to {high}, allowed: 0 to {classes - 1} for {classes} classes{cure}"
        )
