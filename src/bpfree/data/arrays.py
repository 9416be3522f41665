"""Data from Python: arrays, tensors, torch data sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.data.dataset import Dataset, Split
from bpfree.data.labels import Answers, count_classes, read_labels
from bpfree.data.loaders import collect
from bpfree.data.rows import Rows
from bpfree.errors import UserError


def from_python(
    data: Any,
    test: Any = None,
    classes: int | None = None,
    *,
    without_labels: bool = False,
    values: bool = False,
    answers: Answers = "class",
    ignored: int | None = None,
) -> Dataset:
    """A Dataset from a pair (samples, labels) of arrays or tensors, or a torch Dataset or DataLoader of such pairs.

    uint8 samples are images and will be normalised; any others pass as they are. Labels are integers from 0,
    unless they are to be numbers.

    Args:
        data: for training.
        test: for the final evaluation, likewise; optional.
        classes: C; default: the largest label plus 1.
        without_labels: samples alone will do, since they are to be rebuilt.
        values: labels are numbers, [N, ...], and there are no classes.
        answers: what a label is otherwise, see `bpfree.data.labels`.
        ignored: the label of pixels that do not count.

    Raises:
        UserError: neither a pair nor a data set, labels that are no integers, out of range or have gaps, lengths that
            differ.
    """
    answers = "numbers" if values else answers
    train_split = _split(data, "data", without_labels, answers)
    test_split = None if test is None else _split(test, "test", without_labels, answers)
    if values:
        return Dataset("arrays", train_split, test_split, 0)
    if classes is None:
        splits = [split.y for split in (train_split, test_split) if split is not None]
        classes, labels = count_classes(splits, answers, ignored)
        if not without_labels:
            _check_gaps(labels, answers)
    fewest = 1 if answers == "several" else 2
    return Dataset("arrays", train_split, test_split, max(classes, fewest), answers=answers, ignored=ignored)


def _check_gaps(labels: set[int], answers: Answers) -> None:
    """Raise UserError unless every class from 0 to the largest one occurs."""
    largest = max(labels, default=-1)
    if min(labels, default=0) >= 0 and len(labels) <= largest:
        missing = next(label for label in range(largest) if label not in labels)
        ignore = (
            f". If {largest} means that a pixel does not count, set task.ignore_index" if answers == "pixels" else ""
        )
        raise UserError(
            f"data (labels): found {len(labels)} classes of which the largest is {largest}, but none is {missing}, "
            "allowed: all from 0 on. Number them anew, as numpy.unique(y, return_inverse=True)[1] does, or say how "
            f"many there are (classes={largest + 1})" + ignore
        )


def to_tensor(values: Any, what: str) -> Tensor:
    """Numpy arrays, tensors and nested lists as a tensor; float64 arrays become float32, as torch users expect.

    Raises:
        UserError: the values are no array of numbers.
    """
    if isinstance(values, Tensor):
        return values if isinstance(values, Rows) else values.detach()
    try:
        array = np.asarray(values)
        return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else np.ascontiguousarray(array))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: found {type(values).__name__}, allowed: an array or tensor of numbers") from error


def _collect(data: torch.utils.data.Dataset[Any], what: str) -> tuple[Tensor, Tensor]:
    try:
        pairs = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
        if not pairs:
            raise UserError(f"{what}: found no samples, allowed: at least one")
        xs, ys = zip(*((to_tensor(x, what), torch.as_tensor(y)) for x, y in pairs), strict=True)
        return torch.stack(xs), torch.stack(ys)
    except (TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what}: found a {type(data).__name__} that does not fit ({reason}), allowed: a torch Dataset with a "
            "length, whose items are pairs (sample, class number), all samples of one shape"
        ) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: its items do not unpack, allowed: pairs (sample, class number) ({error})") from error


def _split(data: Any, what: str, without_labels: bool, answers: Answers) -> Split:
    if isinstance(data, torch.utils.data.Dataset):
        data = _collect(data, what)
    if isinstance(data, torch.utils.data.DataLoader):
        data = collect(data, what)
    if without_labels and isinstance(data, Tensor | np.ndarray):
        x = to_tensor(data, what)
        return Split(x, torch.zeros(len(x), dtype=torch.int64))
    if not isinstance(data, Sequence) or len(data) != 2:
        raise UserError(
            f"{what}: found {type(data).__name__}, allowed: a pair (samples, labels), a torch Dataset or DataLoader"
        )
    x, y = to_tensor(data[0], f"{what} (samples)"), to_tensor(data[1], f"{what} (labels)")
    return Split(x, read_labels(y, answers, what))
