"""Data sets from objects of Python: arrays, tensors, torch data sets and DataLoaders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.data.dataset import Dataset
from bpfree.data.labels import Answers, Labels, count_classes, read_labels
from bpfree.data.loaders import Collected, collect, error_line, joined
from bpfree.data.origins import number_copies, original
from bpfree.data.records import record_of
from bpfree.data.split import Split
from bpfree.data.tensors import channels_first, to_inputs, to_tensor
from bpfree.data.text_labels import number_text
from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, main_input
from bpfree.noise import Noise


def make_dataset(
    data: Any,
    test: Any = None,
    classes: int | None = None,
    *,
    without_labels: bool = False,
    values: bool = False,
    answers: Answers = "class",
    ignored: int | None = None,
    names: Sequence[str] | None = None,
) -> Dataset:
    """Make a Dataset from a pair (samples, labels) of arrays, or from a torch Dataset or DataLoader of such pairs.

    Samples are one array, or for nets of several inputs a tuple of arrays or a dict of arrays by name. A dict may also
    hold the labels, under "labels", "label" or "y". Samples of uint8 are images: training normalises them, and channels
    last become channels first. All other samples pass as they are. Labels are integers from 0, or text, unless they are
    numbers. Text becomes class numbers in the order of the alphabet, and the data set keeps the names.

    Args:
        data: the training data.
        test: the data for the final evaluation, in the same form; None for no test split.
        classes: C; default: the largest label plus 1.
        without_labels: True if samples without labels are enough, because the net rebuilds them.
        values: True if labels are numbers [N, ...], and not classes.
        answers: what a label is, if labels are classes; see `bpfree.data.labels`.
        ignored: the label of pixels or tokens that do not count.
        names: the names of the classes, if labels may be text; default: the different labels of the training data.

    Returns:
        A data set named "arrays", without a validation split.

    Raises:
        UserError: `data` is neither a pair nor a data set, samples are not numbers, labels are not integers, are out of
            range or have gaps, or lengths differ.

    Example:
        >>> make_dataset((np.zeros((4, 2)), [0, 1, 0, 1])).classes
        2
    """
    answers = "numbers" if values else answers
    class_names = None
    if answers == "class":
        data, test, class_names = number_text(data, test, names)
    train_split, copies = _split(data, "data", without_labels, answers)
    test_split = None if test is None else _split(test, "test", without_labels, answers)[0]
    if values:
        return Dataset("arrays", train_split, test_split, Labels(0), origin=copies)
    if class_names is not None:
        if classes not in (None, len(class_names)):
            raise UserError(f"classes: found {classes}, but the labels are text with {len(class_names)} classes")
        return Dataset("arrays", train_split, test_split, Labels(len(class_names), class_names), origin=copies)
    if classes is None:
        splits = [split.y for split in (train_split, test_split) if split is not None]
        classes, labels = count_classes(splits, answers, ignored)
        if answers == "tokens":  # a token may occur only as an input, and a vocabulary may have gaps
            classes = max(
                classes, *(int(main_input(split.x).max()) + 1 for split in (train_split, test_split) if split)
            )
        elif not without_labels:
            _check_gaps(labels, answers)
    fewest = 1 if answers == "several" else 2
    # With one class, softmax gives 1 whatever the net computes, and there is no gradient.
    classes = max(classes, fewest)
    return Dataset("arrays", train_split, test_split, Labels(classes, None, answers, ignored), origin=copies)


def _check_gaps(labels: set[int], answers: Answers) -> None:
    """Raise UserError unless every class from 0 to the largest one occurs."""
    # A gap is mostly an error in the labels, and a class that never occurs would still cost an output of the net.
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


def _collect(data: Any, what: str) -> Collected:
    """Return the items of a torch Dataset, joined.

    Raises:
        UserError: the data set has no length or no items, its items have another form, or reading one failed.
    """
    try:
        length = len(data)
    except (TypeError, NotImplementedError) as error:
        raise _unfit(data, what, error) from error
    if not length:
        raise UserError(f"{what}: found no samples, allowed: at least one")
    xs: list[Inputs] = []
    ys: list[Tensor] = []
    # By index: a Dataset without __iter__ is iterated until it raises IndexError, which many never do.
    for i in range(length):
        x, y = record_of(_item(data, i, what), f"{what}: found items that are not pairs")
        xs.append(apply(to_inputs(x, f"{what} (samples)"), lambda t: t.unsqueeze(0)))
        ys.append(to_tensor(y, f"{what} (labels)"))
    try:
        together = Collected(joined(xs), torch.stack(ys))
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        raise _unfit(data, what, error) from error
    return together._replace(origin=number_copies([original(data, i) for i in range(length)]))


def _item(data: Any, index: int, what: str) -> Any:
    """Return an item of the user's data set; any exception becomes a UserError that names the item."""
    try:
        return data[index]
    # torch's Dataset raises it if a subclass has no __getitem__, such as an IterableDataset.
    except NotImplementedError as error:
        raise _unfit(data, what, error) from error
    except Exception as error:  # of the user's code
        raise UserError(
            f"{what}: its {type(data).__name__} failed at item {index}, from 0 ({error_line(error)})"
        ) from error


def _unfit(data: Any, what: str, error: Exception) -> UserError:
    return UserError(
        f"{what}: found a {type(data).__name__} that does not fit ({error_line(error)}), allowed: a torch Dataset with "
        "a length, whose items are pairs (sample, label), all samples of one shape and form"
    )


def _is_data_set(data: Any) -> bool:
    """Return True for a torch Dataset, and for an object with a length and items that is not an array."""
    if isinstance(data, torch.utils.data.Dataset):
        return True
    # Arrays, lists and dicts also have a length and items, but they are read as a whole.
    is_read_otherwise = isinstance(data, Sequence | Mapping | Tensor | type) or hasattr(data, "__array__")
    return not is_read_otherwise and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _split(data: Any, what: str, without_labels: bool, answers: Answers) -> tuple[Split, Tensor | None]:
    """Return samples and labels, and the numbers that copies of one sample share; see `Collected`."""
    copies = None
    if isinstance(data, torch.utils.data.DataLoader) or _is_data_set(data):
        read = collect if isinstance(data, torch.utils.data.DataLoader) else _collect
        # The user's data set may draw random numbers. Every run, and a resume, must read the same samples.
        with Noise(0).fold("read").global_rng():
            data = read(data, what)
        copies = data.origin
    if without_labels and isinstance(data, Tensor | np.ndarray):
        alone = _check_dimension(to_tensor(data, what), what)
        return Split(channels_first(alone), torch.zeros(len(alone), dtype=torch.int64)), None
    if isinstance(data, str) or not isinstance(data, Sequence | Mapping):
        raise UserError(
            f"{what}: found {type(data).__name__}, allowed: a pair (samples, labels), a torch Dataset or DataLoader"
        )
    x, y = _pair(data, what, without_labels)
    return Split(x, read_labels(y, answers, what)), copies


def _pair(data: Any, what: str, without_labels: bool) -> tuple[Inputs, Tensor]:
    """Return samples with channels first, and labels with at least one dimension."""
    if isinstance(data, Collected):
        x, y = data.x, data.y
    else:
        raw = record_of(data, f"{what}: found no pair (samples, labels)")
        y = _check_dimension(to_tensor(raw.y, f"{what} (labels)"), f"{what} (labels)")
        x = to_inputs(raw.x, f"{what} (samples)", len(y))
    x = apply(x, channels_first)
    apply(x, lambda t: _check_dimension(t, f"{what} (samples)"))
    if without_labels and not isinstance(x, Tensor):
        raise UserError(
            f"{what}: found several inputs, allowed where samples are to be rebuilt: one array of samples. Join "
            "them, or give what is to be rebuilt as labels, with task=regress"
        )
    return x, y


def _check_dimension(x: Tensor, what: str) -> Tensor:
    """Return the tensor, or raise UserError if it is a single number."""
    if not x.dim():
        raise UserError(f"{what}: found a single number, allowed: an array with one entry for each sample")
    return x
