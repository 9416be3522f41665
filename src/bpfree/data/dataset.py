"""A data set in memory, and what turns its raw values into a net's input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bpfree.data.columns import Column, are_numbers, width
from bpfree.data.files.rows import chunks
from bpfree.data.labels import Answers, check_labels, class_counts
from bpfree.data.split import Split as Split
from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, count, one_tensor, shapes, tensors_of
from bpfree.noise import Noise

_LARGEST_SAMPLE = 1 << 28  # values; of what a run folder says
_MOST_CLASSES = 1 << 24


@dataclass(frozen=True)
class Dataset:
    """A data set: raw values, so that a batch alone is ever held as floats.

    Args:
        name: as in the table, or "arrays".
        train: the training split, from which a validation split is carved.
        test: touched by the final evaluation only; None if there is none.
        classes: C; 0 if labels are no classes but numbers.
        white: the raw value of a white pixel, 255 for most images.
        validation: a split of its own, in place of one that is carved from train; None for most.
        class_names: of the C classes, for people to read; None if they are but numbers.
        columns: of a table, what its features are; see `bpfree.data.sets.table`. They are standardised.
        time_step: of sequences, how long a step is, in the unit in which predictions are judged; 1 to count steps.
        answers: what a label is, where there are classes; see `bpfree.data.labels`.
        ignored: the label of pixels that do not count; None if all count.
        origin: of the training samples, int64 [N], the same number for copies of one sample; None if there are none.
    """

    name: str
    train: Split
    test: Split | None
    classes: int
    white: float = 255.0
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    time_step: float = 1.0
    answers: Answers = "class"
    ignored: int | None = None
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        self._check(self.train, f"{self.name} (train)")
        for what, split in (("validation", self.validation), ("test", self.test)):
            if split is None:
                continue
            self._check(split, f"{self.name} ({what})")
            if (found := _form(split.x)) != (allowed := _form(self.train.x)):
                raise UserError(
                    f"{self.name}: {what} samples have the shape {found}, allowed: that of the training samples, "
                    f"{allowed}"
                )
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise UserError(f"{self.name}: found {len(self.class_names)} class names, allowed: {self.classes}")

    def _check(self, split: Split, what: str) -> None:
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
        check_labels(y, self.classes, self.answers, self.ignored, what)
        for tensor in tensors_of(x):
            refuse_not_finite(tensor, what)

    def carve(self, validation: float, seed: int) -> tuple[Split, Split | None]:
        """Train and validation split: a fraction of train, chosen by seed, unless the data set has one of its own.

        Of samples with copies (see `origin`) it is a fraction of the different ones. Validation has each once, and
        training none of their copies.

        Raises:
            UserError: nothing would be left on one side.
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
        if self.origin is not None:
            is_held = torch.zeros(n, dtype=torch.bool).index_fill(0, order[:held_out], True)[self.origin]
            first = torch.full((n,), len(is_held)).scatter_reduce(
                0, self.origin, torch.arange(len(is_held)), "amin", include_self=True
            )
            return self.train.take((~is_held).nonzero().flatten()), self.train.take(
                first[order[:held_out]].sort().values
            )
        return self.train.take(order[held_out:].sort().values), self.train.take(order[:held_out].sort().values)


def _form(x: Inputs) -> str:
    """The shape of a sample, for comparison and for messages."""
    return shapes(apply(x, lambda t: t[0]))


def refuse_not_finite(x: Tensor, what: str) -> None:
    """Raise UserError if samples [N, ...] contain NaN or infinite values, and say which."""
    if not x.is_floating_point() or not len(x):
        return
    bad = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in chunks(x)])
    if bad.any():
        raise UserError(
            f"{what}: samples contain NaN or infinite values ({int(bad.sum())} of {len(x)} do, the first is number "
            f"{int(bad.nonzero()[0])}, from 0), allowed: finite ones"
        )


@dataclass(frozen=True)
class Preprocess:
    """Raw values to input: (x - mean) / std, by channel for images. It is saved with a run, so predictions repeat it.

    Args:
        shape: of one sample.
        mean: one value, or one for each channel, in raw units.
        std: likewise.
        white: the raw value of a white pixel.
        classes: C.
        dtype: of the raw samples, such as "uint8"; integers other than bytes are names (tokens), not quantities.
        limits: smallest and largest value of what is to be rebuilt, if that is the task.
        class_names: of the C classes, for people to read; None if they are but numbers.
        columns: of a table, what its features are.
        answer_shape: of one label.
        answer_mean: of the training labels as numbers, one for each value of the last dimension.
        answer_std: likewise.
        time_step: see `Dataset`.
        inputs: of a net of several inputs, the preprocessing of each by its name, "0", "1", ... where they have none;
            then `shape`, `mean`, `std`, `dtype` and `limits` are those of the first that is not tokens.
        class_counts: how many training samples (or pixels) each class has; () if there are no classes.
        samples: of training.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float
    classes: int
    dtype: str
    limits: tuple[float, float]
    class_names: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    answer_shape: tuple[int, ...] = ()
    answer_mean: tuple[float, ...] = (0.0,)
    answer_std: tuple[float, ...] = (1.0,)
    time_step: float = 1.0
    inputs: tuple[tuple[str, "Preprocess"], ...] = ()
    class_counts: tuple[int, ...] = ()
    samples: int = 0

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "Preprocess":
        """Statistics of the training samples for uint8 and numbers in tables; other values pass as they are."""
        if not isinstance(train.x, Tensor):
            named = train.x.items() if isinstance(train.x, dict) else ((str(i), x) for i, x in enumerate(train.x))
            each = {name: cls.of(dataset, Split(x, train.y)) for name, x in named}
            main = next((one for one in each.values() if not one.has_tokens), next(iter(each.values())))
            return replace(main, inputs=tuple(each.items()))
        shape = tuple(train.x.shape[1:])
        is_image = train.x.dtype == torch.uint8
        mean, std = _statistics(train.x) if is_image else ((0.0,), (1.0,))
        if dataset.columns is not None:
            mean, std = _statistics_of_table(train.x, dataset.columns)
        lows, highs = zip(*((float(part.min()), float(part.max())) for part in chunks(train.x)), strict=True)
        limits = (0.0, 1.0) if is_image else (min(lows), max(highs))
        dtype = str(train.x.dtype).removeprefix("torch.")
        names, columns = dataset.class_names, dataset.columns
        has_numbers = dataset.classes == 0 or train.y.dim() == 1
        statistics = _statistics_of_answers(train.y) if has_numbers else ((0.0,), (1.0,))
        counts = class_counts(train.y, dataset.classes, dataset.answers, dataset.ignored)
        own = (shape, mean, std, dataset.white, dataset.classes, dtype, limits)
        answers = (tuple(train.y.shape[1:]), *statistics, dataset.time_step)
        return cls(*own, names, columns, *answers, class_counts=counts, samples=len(train.y))

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Preprocess":
        """The inverse of `save`, of values that may be damaged.

        Raises:
            UserError: a value is missing, of the wrong type, or cannot be.
        """
        try:
            loaded = TypeAdapter(cls).validate_python(saved)
            loaded.check()
        except ValueError as error:  # pydantic's among them
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"checkpoint: its preprocessing is damaged ({where}: {first['msg']})") from error
        return loaded

    def check(self) -> None:
        """Raise ValueError for values that no data set has."""
        channels = self.shape[0] if self.shape else 0
        numbers = (*self.mean, *self.std, *self.limits, *self.answer_mean, *self.answer_std, self.white, self.time_step)
        kind = getattr(torch, self.dtype, None)
        names, columns = self.class_names, self.columns
        for fits, what in (
            (min((1, *self.shape)) > 0 and math.prod(self.shape) <= _LARGEST_SAMPLE, "shape"),
            (len(self.mean) in (1, channels) and len(self.std) == len(self.mean), "mean and std"),
            (all(map(math.isfinite, numbers)), "numbers that are finite"),
            (min((*self.std, *self.answer_std, self.white, self.time_step), default=0) > 0, "std and white above 0"),
            (self.limits[0] <= self.limits[1], "limits"),
            (isinstance(kind, torch.dtype), "dtype"),
            (0 <= self.classes <= _MOST_CLASSES, "classes"),
            (names is None or len(names) == self.classes, "class_names"),
            (columns is None or width(columns) == channels, "columns"),
            (len(self.answer_shape) <= 8 and math.prod((1, *self.answer_shape)) <= _LARGEST_SAMPLE, "answer_shape"),
            (min((1, *self.answer_shape)) > 0 and len(self.answer_mean) == len(self.answer_std) > 0, "answers"),
            (len(self.class_counts) in (0, self.classes) and min((0, *self.class_counts)) == 0, "class_counts"),
            (all(name and not own.inputs for name, own in self.inputs), "inputs"),
        ):
            if not fits:
                raise ValueError(f"{what} cannot be so")
        for _, own in self.inputs:
            own.check()

    def save(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {key: value for key, value in asdict(self).items() if value or key != "inputs"}

    def __call__(self, x: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
        """[B, ...] raw -> [B, ...] input; of several inputs each likewise, and bools stay bools, as masks are.

        Raises:
            UserError: samples of another shape or form than those of training, or no tokens where those were.
        """
        if not self.inputs:
            return self._scaled(one_tensor(x), dtype)
        self._check_form(x)
        scaled = [
            t if own.dtype == "bool" and t.dtype == torch.bool else own._scaled(t, dtype)
            for t, (_, own) in zip(tensors_of(x), self._in_order(x), strict=True)
        ]
        return dict(zip(x, scaled, strict=True)) if isinstance(x, Mapping) else tuple(scaled)

    def _in_order(self, x: Inputs) -> list[tuple[str, "Preprocess"]]:
        """The inputs in the order of x."""
        known = dict(self.inputs)
        return [(name, known[name]) for name in x] if isinstance(x, Mapping) else list(self.inputs)

    def _check_form(self, x: Inputs) -> None:
        names = [name for name, _ in self.inputs]
        by_name = not names[0].isdigit()
        found = sorted(x) if isinstance(x, Mapping) else len(tensors_of(x))
        if isinstance(x, Tensor) or found != (sorted(names) if by_name else len(names)):
            allowed = f"a dict of {', '.join(names)}" if by_name else f"a tuple of {len(names)}"
            shown = "one" if isinstance(x, Tensor) else ", ".join(x) if isinstance(x, Mapping) else len(x)
            raise UserError(f"samples: found {shown}, allowed: {allowed}, as in training")

    def _scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"samples have the shape {list(x.shape[1:])}, allowed: {list(self.shape)}, as in training")
        if self.has_tokens:
            if x.is_floating_point():
                raise UserError(f"samples are {x.dtype}, allowed: integers, as in training")
            return x.to(getattr(torch, self.dtype))
        exact = dtype if self.columns is None else torch.float64  # a time in seconds loses its minutes in float32
        x = x.to(exact, copy=True)
        per_channel = (-1, *[1] * (len(self.shape) - 1)) if len(self.mean) > 1 else (1,)
        mean, std = (torch.tensor(v, dtype=exact, device=x.device).view(per_channel) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std).to(dtype)

    def target(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, ...] raw -> what is to be rebuilt of them: images as [0, 1], floating values as they are."""
        return x.to(dtype) / self.white if self.dtype == "uint8" else x.to(dtype)

    @property
    def has_tokens(self) -> bool:
        """Whether samples are names, which pass as they are."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return not dtype.is_floating_point and dtype not in (torch.uint8, torch.bool)

    def has_numbers(self, x: Tensor) -> bool:
        """Whether raw samples are integers that are quantities, which are neither bytes nor names."""
        return not x.is_floating_point() and x.dtype not in (torch.uint8, torch.bool) and not self.has_tokens

    def as_numbers(self) -> "Preprocess":
        """The same for integers that are quantities and no names: they become floating numbers."""
        return replace(self, dtype="float32") if self.has_tokens and not self.inputs else self

    def blank(self, n: int) -> Inputs:
        """Raw samples [n, ...] of zeros."""
        if self.inputs:
            blanks = {name: own._blank(n) for name, own in self.inputs}
            return tuple(blanks.values()) if self.inputs[0][0].isdigit() else blanks
        return self._blank(n)

    def _blank(self, n: int) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=getattr(torch, self.dtype))

    def unlabelled(self, x: Inputs) -> Split:
        """Raw samples [N, ...] with labels of zeros."""
        return Split(x, torch.zeros(count(x), *self.answer_shape, dtype=torch.int64 if self.classes else torch.float32))


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of uint8 values by histogram: exact, and without a float copy of the data."""
    channels = x.shape[1] if x.dim() == 4 else 1
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in chunks(x):
        for own, values in zip(counts, part.unbind(1) if channels > 1 else (part,), strict=True):
            own += torch.bincount(values.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    shares = counts.double() / counts.sum(1, keepdim=True)
    means = [float((share * values).sum()) for share in shares]
    stds = [float((share * (values - mean) ** 2).sum()) ** 0.5 for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(std or 1.0 for std in stds)


def _statistics_of_answers(y: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of labels [N] or [N, ..., D] as numbers, for each of the D."""
    values = y.double().reshape(-1, y.shape[-1] if y.dim() > 1 else 1)
    std = values.std(0, correction=0)
    return tuple(values.mean(0).tolist()), tuple(value or 1.0 for value in std.tolist())


def _statistics_of_table(x: Tensor, columns: Sequence[Column]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature that is a number; 0 and 1 of the others."""
    numeric = are_numbers(columns)
    mean = x.double().mean(0).where(numeric, 0.0)
    std = x.double().std(0, correction=0).where(numeric, 1.0)
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())
