"""Make training data fewer or worse: a fraction of the samples, classes out of balance, wrong labels, fewer classes.

Class imbalance as in Cui et al. 2019, https://arxiv.org/abs/1901.05555 (long-tailed), and Buda et al. 2018,
https://arxiv.org/abs/1710.05381 (step); uniform label noise as in Zhang et al. 2017, https://arxiv.org/abs/1611.03530,
except that a wrong label is never the true one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bpfree.data.dataset import Dataset
from bpfree.data.origins import number_copies
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.noise import Noise

SkewKind = Literal["long_tailed", "step"]


class Skew(NamedTuple):
    """Class imbalance, in which class 0 is the most frequent.

    Attributes:
        kind: how many of the n samples of class i of K classes are kept. "long_tailed": n factor^(-i/(K-1)). "step":
            n / factor for the classes above the median class, and all samples of the others.
        factor: the share of the first class divided by the share of the last.

    Example:
        >>> Skew("step", 4).shares(4).tolist()
        [1.0, 1.0, 0.25, 0.25]
    """

    kind: SkewKind
    factor: float

    def shares(self, classes: int) -> Tensor:
        """Return the share of each class that is kept, floating [C]."""
        index = torch.arange(classes, dtype=torch.float64)
        if self.kind == "step":
            return torch.where(index > (classes - 1) / 2, 1 / self.factor, 1.0)
        return self.factor ** (-index / max(classes - 1, 1))


def select(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Return a data set with the samples of some classes, in every split.

    Args:
        dataset: the whole data set.
        classes: the classes to keep, at least two. Their order gives the new labels 0, 1, 2, ...

    Raises:
        UserError: there are fewer than two classes, one is named twice, one does not occur in the data set or in its
            training samples, or a split would be empty.
    """
    counts = torch.bincount(_labels(dataset.train, "classes"), minlength=dataset.classes).tolist()
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UserError(f"data.classes: found {list(classes)}, allowed: at least two classes, each once")
    if unknown := [c for c in classes if c not in range(len(counts))]:
        raise UserError(
            f"data.classes: found {unknown[0]}, allowed: 0 to {len(counts) - 1}, as {dataset.name} has them"
        )
    if missing := [c for c in classes if not counts[c]]:
        raise UserError(f"data.classes: found {missing[0]}, of which {dataset.name} has no training sample")
    names, origin, kept = dataset.class_names, dataset.origin, torch.tensor(classes)
    return replace(
        dataset,
        train=_only(dataset, dataset.train, classes),
        validation=dataset.validation and _only(dataset, dataset.validation, classes),
        test=dataset.test and _only(dataset, dataset.test, classes),
        labels=replace(dataset.labels, classes=len(classes), names=names and tuple(names[c] for c in classes)),
        # Copies are numbered anew: `Dataset.carve` takes the largest number plus 1 as the number of originals.
        origin=origin if origin is None else number_copies(origin[torch.isin(dataset.train.y, kept)].tolist()),
    )


def _only(dataset: Dataset, split: Split, classes: Sequence[int]) -> Split:
    """Return the samples of some classes of a split, with their new labels."""
    places = torch.full((dataset.classes,), -1)  # [C], the new label of each class
    # -1 marks classes that are left out.
    places[torch.tensor(classes)] = torch.arange(len(classes))
    new = places[split.y]
    index = (new >= 0).nonzero().flatten()
    if not len(index):
        raise UserError(
            f"data.classes: found {list(classes)}, of which {dataset.name} lacks test or validation samples"
        )
    return split.take(index)._replace(y=new[index])


def thin(split: Split, classes: int, noise: Noise, *, fraction: float = 1.0, skew: Skew | None = None) -> Split:
    """Return a part of a split: for each class the share that `skew` leaves, times the fraction.

    Each class keeps its share, rounded to whole samples, and at least one sample. Samples stay in their order. With the
    same key, a smaller part lies within a larger one. Labels that are not classes count as one class.

    Args:
        split: the split to choose from.
        classes: C.
        noise: the key of the choice.
        fraction: above 0 and up to 1.
        skew: class imbalance; None for none.

    Raises:
        UserError: `skew` is given, but labels are not classes.
    """
    if fraction == 1 and skew is None:
        return split
    has_labels = split.y.dim() == 1 and split.y.dtype == torch.int64
    labels = split.y if has_labels else torch.zeros(len(split.y), dtype=torch.int64)
    shares = torch.ones(classes if has_labels else 1, dtype=torch.float64)
    if skew is not None:
        _labels(split, "skew")
        shares = skew.shares(classes)
    counts = torch.bincount(labels, minlength=len(shares))
    # A class without samples stays empty: `minimum` takes back the one sample that `clamp_min` gives it.
    kept = (counts * shares * fraction).round().long().clamp_min(1).minimum(counts)  # [C]
    return split.take(_first_of_each(labels, kept, noise))


def _first_of_each(labels: Tensor, counts: Tensor, noise: Noise) -> Tensor:
    """Return the positions, rising, of the first `counts[c]` samples of each class c in the order of the key.

    One shuffled order serves all counts: that is why a smaller part lies within a larger one.
    """
    order = noise.permutation(len(labels))
    # A stable sort keeps the order of the key within each class.
    grouped = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels, minlength=len(counts))
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # [N], within each class
    return grouped[rank < counts.repeat_interleave(sizes)].sort().values


def mislabel(split: Split, classes: int, share: float, noise: Noise) -> Split:
    """Give a share of the samples a wrong class; all wrong classes are equally likely.

    With a larger share and the same key, samples that had a wrong label keep it, and further samples get one.

    Args:
        split: samples with labels y [N], int64.
        classes: C.
        share: from 0 to below 1; the number of samples is rounded.
        noise: the key of the choice.

    Raises:
        UserError: labels are not classes.
    """
    if share == 0:
        return split
    # A copy, since the labels may share memory with the user's array.
    labels = _labels(split, "label_noise").clone()
    n = len(labels)
    # The beginning of one order: a larger share contains the samples of a smaller share.
    wrong = noise.permutation(n)[: round(share * n)]
    # A shift by 1 to C - 1 never ends at the true class. It is drawn for all samples, so that `share` changes none.
    shift = 1 + torch.randint(classes - 1, (n,), generator=noise.fold("shift").generator())
    labels[wrong] = (labels[wrong] + shift[wrong]) % classes
    return split._replace(y=labels)


def _labels(split: Split, key: str) -> Tensor:
    """Return the labels of a split, or raise UserError if they are not one class for each sample."""
    if split.y.dim() != 1 or split.y.dtype != torch.int64:
        raise UserError(
            f"data.{key}: needs classes, but the targets are {split.y.dtype} of shape {[*split.y.shape]}. Leave it "
            "out, or give labels that are classes"
        )
    return split.y
