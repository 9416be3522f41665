"""Make a data set of splits whose samples stay in shards: classes are numbered, and a test split is held out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.data.classes import check_classes, name_classes, shown_names, with_test
from bpfree.data.columns import Column
from bpfree.data.dataset import Dataset
from bpfree.data.files.rows import Rows, RowSource
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError


class ShardSplit(NamedTuple):
    """A split as it was read.

    Attributes:
        source: the samples.
        y: labels, int64 [N], places among the names; or floating numbers [N] or [N, D].
        names: the different labels, in any order; () for numbers.
    """

    source: RowSource
    y: Tensor
    names: tuple[str, ...]


def dataset_of(
    name: str,
    read: dict[str, ShardSplit],
    test: float | None,
    *,
    classes: Sequence[str] | None = None,
    columns: tuple[Column, ...] | None = None,
) -> Dataset:
    """Return the data set of some splits.

    Args:
        name: of the data set.
        read: the splits by name, "train" among them.
        test: the share of the training samples that becomes the test split; see `bpfree.data.classes.test_share`.
        classes: the names of the classes, in order. None for the different labels of training, by size or alphabet.
        columns: for a table, its features.

    Raises:
        UserError: labels cannot be classes, or a split has a label that training does not have.
    """
    train = read["train"]
    if not train.names:
        numbers = {split: Split(_rows(found), found.y.float()) for split, found in read.items()}
        splits, labels = with_test(numbers, test), Labels(0)
    else:
        names = name_classes(train.names) if classes is None else tuple(classes)
        if classes is None:
            check_classes(names, len(train.y), f"{name} (train)")
        placed = {
            split: Split(_rows(found), _placed(found, names, f"{name} ({split})")) for split, found in read.items()
        }
        splits, labels = with_test(placed, test), Labels(len(names), shown_names(names))
    return Dataset(
        name, splits["train"], splits.get("test"), labels, validation=splits.get("validation"), columns=columns
    )


def _rows(split: ShardSplit) -> Rows:
    return Rows(split.source, torch.arange(len(split.y)))


def _placed(split: ShardSplit, names: Sequence[str], what: str) -> Tensor:
    """Return the labels of a split as places among the names of the classes."""
    place = {name: i for i, name in enumerate(names)}
    if strange := [name for name in split.names if name not in place]:
        raise UserError(f"{what}: found the label {strange[0]!r:.200}, allowed: those of training")
    return torch.tensor([place[name] for name in split.names], dtype=torch.int64)[split.y]
