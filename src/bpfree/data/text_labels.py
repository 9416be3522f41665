"""Labels that are text, such as "cat": they become class numbers, and their names stay with the data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bpfree.data.classes import name_classes, number_labels
from bpfree.data.records import LABELS, record_of
from bpfree.errors import UserError

Names = tuple[str, ...]


def number_text(data: Any, test: Any, names: Sequence[str] | None = None) -> tuple[Any, Any, Names | None]:
    """Return training and test data with numbers in place of text labels, and the names of the classes.

    Args:
        data: the training data; anything but samples with text labels stays as it is.
        test: the test data, or None.
        names: the names of the classes in order. Default: the different labels of `data`, by the alphabet, or by size
            if all are integers.

    Returns:
        The data, the test data, and the names; None for labels that are not text.

    Raises:
        UserError: there is only one class, a test label is not among the names, or only one of the two has text.

    Example:
        >>> (x, y), _, names = number_text(([[1], [2], [3]], ["dog", "cat", "dog"]), None)
        >>> y.tolist(), names
        ([1, 0, 1], ('cat', 'dog'))
    """
    labels, of_test = _text(data), _text(test)
    if labels is None:
        if of_test is not None:
            raise UserError("test (labels): found text, but the labels of the training data are numbers. Use one kind")
        return data, test, None
    if test is not None and of_test is None:
        raise UserError("test (labels): found numbers, but the labels of the training data are text. Use one kind")
    known = name_classes(labels) if names is None else tuple(names)
    if len(known) < 2:
        raise UserError(f"data (labels): found only the label {known[0]!r}, allowed: two or more classes")
    data = _with_labels(data, number_labels(labels, known, "data (labels)"))
    if of_test is not None:
        test = _with_labels(test, number_labels(of_test, known, "test (labels)"))
    return data, test, known


def _text(data: Any) -> list[str] | None:
    """Return the labels of samples in memory if they are text, else None."""
    # A torch Dataset is read sample by sample, and a mapping of other things is not data: both have their own errors.
    if data is None or isinstance(data, str | Dataset | DataLoader):
        return None
    try:
        labels = record_of(data, "").y
        array = np.asarray([] if isinstance(labels, Tensor) else labels)
    except (UserError, ValueError, TypeError, RuntimeError):  # whatever is wrong, reading the data says it better
        return None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "UOT":  # T: text of any length, since numpy 2
        return None
    values = array.tolist()
    return values if all(isinstance(value, str) for value in values) else None


def _with_labels(data: Any, labels: Tensor) -> Any:
    if isinstance(data, Mapping):
        return {name: labels if name in LABELS else value for name, value in data.items()}
    return data[0], labels
