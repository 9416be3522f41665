"""Labels of any kind as classes 0, 1, 2, ..., and a test split that is the same for every seed."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from bpfree.data.dataset import Split
from bpfree.errors import UserError
from bpfree.noise import Noise

_TEST = 0.2


def name_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels in order: of numbers by size, else of the alphabet.

    >>> name_classes(["10", "9", "10"]), name_classes(["b", "a", "10"])
    (('9', '10'), ('10', 'a', 'b'))
    """
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(names)


def number_labels(labels: Sequence[str], names: Sequence[str], what: str) -> Tensor:
    """Each label as its place among the names, int64 [N].

    Raises:
        UserError: a label is none of them.
    """
    number = {name: i for i, name in enumerate(names)}
    for place, label in enumerate(labels):
        if label not in number:
            raise UserError(f"{what}: found the label {label!r} (number {place}, from 0), allowed: those of training")
    return torch.tensor([number[label] for label in labels], dtype=torch.int64)


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Positions for training and for test, both rising: of each class the share, chosen by a fixed key.

    Which samples are held out depends on neither the seed nor the config, so that runs can be compared.

    Args:
        labels: [N], int64.
        share: in (0, 1).

    Raises:
        UserError: nothing would be left on one side.
    """
    held: list[Tensor] = []
    for label in sorted(set(labels.tolist())):
        own = (labels == label).nonzero().flatten()
        order = Noise(0).fold("test", label).permutation(len(own))
        held.append(own[order[: round(share * len(own))]])
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[torch.cat(held)] = True
    test = int(is_test.sum())
    if not 0 < test < len(labels):
        raise UserError(
            f"data.test: found {share}, which leaves {test} of {len(labels)} samples for test. Allowed: 0 for none, or "
            "a share that leaves some of a class on both sides"
        )
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def test_share(share: float | None, splits: Collection[str]) -> float:
    """The share of training to hold out for test: what was asked for, else a fifth if train is the only split.

    Args:
        share: as given, None for the default.
        splits: names of those that are there.

    Raises:
        UserError: no share, or one where there is a test split already.
    """
    if share is None:
        return _TEST if len(splits) == 1 else 0.0
    if not 0 <= share < 1:
        raise UserError(f"data.test: found {share}, allowed: 0 for none, or a share below 1")
    if "test" in splits:
        raise UserError(f"data.test: found {share}, but there is a test split already. Leave out one of the two")
    return share


def with_test(splits: dict[str, Split], share: float | None) -> dict[str, Split]:
    """The splits, with one for test that is held out of training if `test_share` says so.

    Raises:
        UserError: see `test_share` and `hold_out`.
    """
    if not (share := test_share(share, splits)):
        return splits
    y = splits["train"].y
    labels = y if y.dtype == torch.int64 else torch.zeros(len(y), dtype=torch.int64)
    train, test = (splits["train"].take(index) for index in hold_out(labels, share))
    return {**splits, "train": train, "test": test}
