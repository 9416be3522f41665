"""Number labels of any kind as classes 0, 1, 2, ..., and hold out a test split that is the same for every seed."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.noise import Noise

_TEST = 0.2
_FEW_CLASSES = 10  # so few different labels are never numbers of the samples, however few samples there are


def name_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels in order: by size if all are integers, else by the alphabet.

    Args:
        labels: one for each sample.

    Example:
        >>> name_classes(["10", "9", "10"]), name_classes(["b", "a", "10"])
        (('9', '10'), ('10', 'a', 'b'))
    """
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(names)


def number_labels(labels: Sequence[str], names: Sequence[str], what: str) -> Tensor:
    """Return the place of each label among the names, int64 [N].

    Args:
        labels: N labels.
        names: the names of the classes, in order.
        what: the data, for errors.

    Raises:
        UserError: a label is not among the names.
    """
    number = {name: i for i, name in enumerate(names)}
    for place, label in enumerate(labels):
        if label not in number:
            raise UserError(f"{what}: found the label {label!r} (number {place}, from 0), allowed: those of training")
    return torch.tensor([number[label] for label in labels], dtype=torch.int64)


def check_classes(names: Sequence[str], samples: int, what: str) -> None:
    """Raise UserError unless labels can be classes: two or more, and several samples for each.

    Args:
        names: the different labels.
        samples: the number of samples.
        what: the data, for errors.
    """
    if len(names) < 2:
        raise UserError(f"{what}: found labels of {len(names)} classes, allowed: of two or more")
    if len(names) > _FEW_CLASSES and 2 * len(names) > samples:
        raise UserError(
            f"{what}: found {len(names):,} different labels for {samples:,} samples, such as {names[0]!r:.50}, "
            "allowed: classes with several samples each. To predict numbers give data.values=true and task=regress"
        )


def shown_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of classes; None if they are only the numbers of the classes, 0, 1, 2, ...

    Example:
        >>> shown_names(["0", "1"]), shown_names(["1", "2"])
        (None, ('1', '2'))
    """
    return None if all(name == str(i) for i, name in enumerate(names)) else tuple(names)


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Choose test samples: the same share of each class, by a fixed key.

    Neither the seed nor the config changes the choice, so that the results of all runs can be compared.

    Args:
        labels: [N], int64.
        share: the share of each class that becomes test, between 0 and 1.

    Returns:
        The positions for training and the positions for test, both rising.

    Raises:
        UserError: training or test would be empty.
    """
    chosen: list[Tensor] = []
    for label in sorted(set(labels.tolist())):
        positions = (labels == label).nonzero().flatten()
        # Each class has its own key: samples that are added to one class leave the choice in the others as it is.
        order = Noise(0).fold("test", label).permutation(len(positions))
        chosen.append(positions[order[: round(share * len(positions))]])
    is_test = torch.zeros(len(labels), dtype=torch.bool)  # [N]
    is_test[torch.cat(chosen)] = True
    test = int(is_test.sum())
    if not 0 < test < len(labels):
        raise UserError(
            f"data.test: found {share}, which leaves {test} of {len(labels)} samples for test. Allowed: 0 for none, or "
            "a share that leaves some of a class on both sides"
        )
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def test_share(share: float | None, splits: Collection[str]) -> float:
    """Return the share of the training samples that becomes the test split.

    Args:
        share: the user's choice; None for the default: a fifth if train is the only split, else 0.
        splits: the names of the splits that the data have.

    Raises:
        UserError: the share is not from 0 to below 1, or there is a test split already.
    """
    if share is None:
        return _TEST if len(splits) == 1 else 0.0
    if not 0 <= share < 1:
        raise UserError(f"data.test: found {share}, allowed: 0 for none, or a share below 1")
    if "test" in splits:
        raise UserError(f"data.test: found {share}, but there is a test split already. Leave out one of the two")
    return share


def with_test(splits: dict[str, Split], share: float | None) -> dict[str, Split]:
    """Return the splits, with a test split taken from the training samples if `test_share` says so.

    Args:
        splits: by name, "train" among them.
        share: the user's choice; see `test_share`.

    Raises:
        UserError: see `test_share` and `hold_out`.
    """
    if not (share := test_share(share, splits)):
        return splits
    y = splits["train"].y
    # Numbers have no classes to keep in proportion: all samples count as one class.
    labels = y if y.dtype == torch.int64 else torch.zeros(len(y), dtype=torch.int64)
    train, test = (splits["train"].take(index) for index in hold_out(labels, share))
    return {**splits, "train": train, "test": test}
