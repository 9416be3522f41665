"""A data set in memory: its splits, and what is known about its samples and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.data.columns import Column
from bpfree.data.files.rows import Rows, chunks
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, shapes, tensors_of
from bpfree.noise import Noise


# Without the repr of a dataclass, which would print the samples.
@dataclass(frozen=True, repr=False)
class Dataset:
    """A data set of raw values. Only one batch at a time becomes floating numbers, which saves memory.

    Args:
        name: its name in `bpfree.data.DATASETS`, or "arrays".
        train: the training split, from which a validation split is taken.
        test: the split of the final evaluation; None if the data set has no test split.
        labels: the kind of labels.
        validation: the data set's own validation split; None if it is to be taken from `train`, as for most.
        white: the raw value of a white pixel, 255 for most images.
        columns: for a table, its features; see `bpfree.data.sets.table`. Numbers among them are standardised.
        origin: for training samples some of which are copies, int64 [N]: copies of one sample have the same number.
            None if no sample is a copy.

    Raises:
        UserError: splits are empty or of different shapes, samples are not finite, or labels are not of that kind.

    Example:
        >>> split = Split(torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> Dataset("mine", split, None, Labels(2)).classes
        2
    """

    name: str
    train: Split
    test: Split | None
    labels: Labels
    validation: Split | None = None
    white: float = 255.0
    columns: tuple[Column, ...] | None = None
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        self._check(self.train, f"{self.name} (train)")
        for what, split in (("validation", self.validation), ("test", self.test)):
            if split is None:
                continue
            self._check(split, f"{self.name} ({what})")
            if (form := _form(split.x)) != (allowed := _form(self.train.x)):
                raise UserError(
                    f"{self.name}: {what} samples have the shape {form}, allowed: that of the training samples, "
                    f"{allowed}"
                )
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise UserError(f"{self.name}: found {len(self.class_names)} class names, allowed: {self.classes}")

    def __repr__(self) -> str:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        counts = [f"{name}: {len(split.y):,}" for name, split in splits.items() if split is not None]
        labels = f"{self.classes} classes" if self.classes else f"numbers {list(self.train.y.shape[1:])}"
        return f"Dataset({self.name!r}, {', '.join(counts)}, samples {_form(self.train.x)}, labels: {labels})"

    @property
    def classes(self) -> int:
        """The number of classes C; 0 if labels are numbers."""
        return self.labels.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """A name for each class; None if classes have only numbers."""
        return self.labels.names

    def _check(self, split: Split, what: str) -> None:
        """Raise UserError if a split is empty, samples are not finite, or labels are not of the declared kind."""
        x, y = split
        for tensor in tensors_of(x):
            if len(tensor) != len(y):
                raise UserError(
                    f"{what}: found {len(tensor)} samples and {len(y)} labels, allowed: one label for each sample"
                )
        if len(y) == 0:
            raise UserError(f"{what}: found no samples, allowed: at least one")
        for tensor in tensors_of(x):
            if not tensor.numel():
                raise UserError(
                    f"{what}: found samples of shape {list(tensor.shape[1:])}, which hold no values, allowed: lengths "
                    "of at least 1"
                )
        if not y.numel():
            raise UserError(f"{what}: found labels of shape {list(y.shape[1:])}, which hold no values, allowed: [N]")
        # Labels are checked before samples: to find NaN, all samples are read, which takes long if they lie in a file.
        self.labels.check(y, what)
        for tensor in tensors_of(x):
            refuse_not_finite(tensor, what)

    def carve(self, validation: float, seed: int) -> tuple[Split, Split | None]:
        """Return the training and the validation split.

        A data set with a validation split keeps it. For all others, a fraction of the training samples is chosen by
        seed. If some samples are copies (see `origin`), the fraction is of the different ones: validation gets each
        chosen sample once, and training gets none of its copies.

        Args:
            validation: the fraction of the training samples, from 0 to below 1.
            seed: the seed of the choice.

        Returns:
            The two splits; None in place of validation if the fraction is 0.

        Raises:
            UserError: one of the two splits would be empty.
        """
        if self.validation is not None or validation == 0:
            return self.train, self.validation
        n = len(self.train.y) if self.origin is None else int(self.origin.max()) + 1
        held_out = round(validation * n)
        if not 0 < held_out < n:
            raise UserError(
                f"data.validation: found {validation}, which leaves {held_out} of {n} samples for validation. "
                "Allowed: 0, or a fraction that leaves some on both sides"
            )
        order = Noise(seed).fold("validation").permutation(n)
        # Sorted positions: samples that stay in a file are then read from neighbouring places.
        if self.origin is None:
            return self.train.take(order[held_out:].sort().values), self.train.take(order[:held_out].sort().values)
        return self._carve_originals(self.origin, order[:held_out])

    def _carve_originals(self, origin: Tensor, chosen: Tensor) -> tuple[Split, Split]:
        """Return the splits where some samples are copies: validation holds the first copy of each chosen original.

        A copy on both sides would let the net see validation samples in training.
        """
        originals = int(origin.max()) + 1
        positions = torch.arange(len(origin))
        is_held_out = torch.zeros(originals, dtype=torch.bool).index_fill(0, chosen, True)[origin]  # [N]
        first = torch.full((originals,), len(origin)).scatter_reduce(0, origin, positions, "amin", include_self=True)
        return self.train.take(positions[~is_held_out]), self.train.take(first[chosen].sort().values)


def _form(x: Inputs) -> str:
    """Return the shape of one sample as text, for comparison and for messages."""
    return shapes(apply(x, lambda t: t[0]))


def refuse_not_finite(x: Tensor, what: str) -> None:
    """Raise UserError if samples [N, ...] contain NaN or infinite values, and say which."""
    if not x.is_floating_point() or not len(x) or (isinstance(x, Rows) and x.blocks is not None):
        return  # a source of rows in blocks checks values as it reads them
    bad = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in chunks(x)])  # [N]
    if bad.any():
        raise UserError(
            f"{what}: samples contain NaN or infinite values ({int(bad.sum())} of {len(x)} do, the first is number "
            f"{int(bad.nonzero()[0])}, from 0), allowed: finite ones"
        )
