"""Fewer and worse training samples: a fraction of them, classes out of balance, wrong labels; and fewer classes.

Class imbalance as in Cui et al. 2019, https://arxiv.org/abs/1901.05555 (long-tailed), and Buda et al. 2018,
https://arxiv.org/abs/1710.05381 (step); uniform label noise as in Zhang et al. 2017, https://arxiv.org/abs/1611.03530,
but never the true label.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bpfree.data.dataset import Dataset, Split
from bpfree.data.origins import numbered
from bpfree.errors import UserError
from bpfree.noise import Noise

SkewKind = Literal["long_tailed", "step"]


class Skew(NamedTuple):
    """Class imbalance; class 0 is the most frequent.

    Attributes:
        kind: of the n samples of class i of K, "long_tailed" keeps n factor^(-i/(K-1)); "step" keeps n / factor of the
            classes above the median class, and all of the others.
        factor: how many times as frequent the first class is as the last, if they were alike.
    """

    kind: SkewKind
    factor: float

    def shares(self, classes: int) -> Tensor:
        """What is kept of each class, float64 [C]."""
        index = torch.arange(classes, dtype=torch.float64)
        if self.kind == "step":
            return torch.where(index > (classes - 1) / 2, 1 / self.factor, 1.0)
        return self.factor ** (-index / max(classes - 1, 1))


def select(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The samples of some classes, of every split; labels are places in `classes`.

    Raises:
        UserError: fewer than two classes, one twice, one that the data set has not or has no training sample of, or no
            test sample of any.
    """
    there = torch.bincount(_labels(dataset.train, "classes"), minlength=dataset.classes).tolist()
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UserError(f"data.classes: found {list(classes)}, allowed: at least two classes, each once")
    if unknown := [c for c in classes if c not in range(len(there))]:
        raise UserError(f"data.classes: found {unknown[0]}, allowed: 0 to {len(there) - 1}, as {dataset.name} has them")
    if missing := [c for c in classes if not there[c]]:
        raise UserError(f"data.classes: found {missing[0]}, of which {dataset.name} has no training sample")
    names, origin, kept = dataset.class_names, dataset.origin, torch.tensor(classes)
    return replace(
        dataset,
        train=_only(dataset, dataset.train, classes),
        validation=dataset.validation and _only(dataset, dataset.validation, classes),
        test=dataset.test and _only(dataset, dataset.test, classes),
        classes=len(classes),
        class_names=names and tuple(names[c] for c in classes),
        origin=origin if origin is None else numbered(origin[torch.isin(dataset.train.y, kept)].tolist()),
    )


def _only(dataset: Dataset, split: Split, classes: Sequence[int]) -> Split:
    places = torch.full((dataset.classes,), -1)
    places[torch.tensor(classes)] = torch.arange(len(classes))
    new = places[split.y]
    index = (new >= 0).nonzero().flatten()
    if not len(index):
        raise UserError(
            f"data.classes: found {list(classes)}, of which {dataset.name} lacks test or validation samples"
        )
    return split.take(index)._replace(y=new[index])


def thin(split: Split, classes: int, noise: Noise, *, fraction: float = 1.0, skew: Skew | None = None) -> Split:
    """A part of a split: of each class the share that `skew` leaves, and of that the fraction.

    A class keeps its share to the nearest whole sample, and at least one. Of two parts by the same key the smaller one
    is within the larger. Samples stay in their order. Targets that are no classes count as one class.

    Args:
        split: to choose from.
        classes: C.
        noise: the key.
        fraction: in (0, 1].
        skew: None for none.

    Raises:
        UserError: skew on targets that are no classes.
    """
    if fraction == 1 and skew is None:
        return split
    has_labels = split.y.dim() == 1 and split.y.dtype == torch.int64
    labels = split.y if has_labels else torch.zeros(len(split.y), dtype=torch.int64)
    shares = torch.ones(classes if has_labels else 1, dtype=torch.float64)
    if skew is not None:
        _labels(split, "skew")
        shares = skew.shares(classes)
    there = torch.bincount(labels, minlength=len(shares))
    kept = (there * shares * fraction).round().long().clamp_min(1).minimum(there)
    return split.take(_first_of_each(labels, kept, noise))


def _first_of_each(labels: Tensor, counts: Tensor, noise: Noise) -> Tensor:
    """Positions, rising, of the first `counts[c]` samples of each class c in the order of the key."""
    order = noise.permutation(len(labels))
    grouped = order[labels[order].argsort(stable=True)]
    there = torch.bincount(labels, minlength=len(counts))
    rank = torch.arange(len(labels)) - (there.cumsum(0) - there).repeat_interleave(there)
    return grouped[rank < counts.repeat_interleave(there)].sort().values


def mislabel(split: Split, classes: int, share: float, noise: Noise) -> Split:
    """Give a share of the samples, to the nearest whole one, another class, all others being equally likely.

    With a larger share and the same key, the samples that had a wrong label have the same one, and more have one.

    Args:
        split: y [N], int64.
        classes: C.
        share: in [0, 1).
        noise: the key.

    Raises:
        UserError: targets that are no classes.
    """
    if share == 0:
        return split
    labels = _labels(split, "label_noise").clone()
    n = len(labels)
    wrong = noise.permutation(n)[: round(share * n)]
    shift = 1 + torch.randint(classes - 1, (n,), generator=noise.fold("shift").generator())
    labels[wrong] = (labels[wrong] + shift[wrong]) % classes
    return split._replace(y=labels)


def _labels(split: Split, key: str) -> Tensor:
    if split.y.dim() != 1 or split.y.dtype != torch.int64:
        raise UserError(
            f"data.{key}: needs classes, but the targets are {split.y.dtype} of shape {[*split.y.shape]}. Leave it "
            "out, or give labels that are classes"
        )
    return split.y
