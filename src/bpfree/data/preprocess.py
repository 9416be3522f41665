"""The preprocessing of data: how raw samples become inputs, and what the labels are. A run saves it."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from bpfree.data import statistics
from bpfree.data.columns import Column
from bpfree.data.dataset import Dataset
from bpfree.data.scaling import LARGEST_SAMPLE, Scaling
from bpfree.data.split import Split
from bpfree.data.vocabulary import bytes_of_tokens
from bpfree.errors import UserError
from bpfree.inputs import Inputs, count

_MOST_CLASSES = 1 << 24
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class LabelFacts:
    """Facts about the training labels, from which a task is made.

    Args:
        classes: C; 0 if labels are numbers.
        class_names: a name for each of the C classes; None if classes have only numbers.
        answer_shape: the shape of one label.
        answer_mean: the mean of the labels as numbers, one for each value of the last dimension.
        answer_std: the standard deviation of the labels as numbers, like `answer_mean`, above 0.
        time_step: for sequences, how long a step is; see `bpfree.data.labels.Labels`.
        class_counts: how many training samples (or pixels) each class has; () if labels are numbers.
        samples: the number of training samples.
    """

    classes: int
    class_names: tuple[str, ...] | None = None
    answer_shape: tuple[int, ...] = ()
    answer_mean: tuple[float, ...] = (0.0,)
    answer_std: tuple[float, ...] = (1.0,)
    time_step: float = 1.0
    class_counts: tuple[int, ...] = ()
    samples: int = 0

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "LabelFacts":
        """Return the facts about the labels of a training split."""
        kind, y = dataset.labels, train.y
        # Several labels for a sample, or one for each pixel, are never standardised.
        has_numbers = kind.classes == 0 or y.dim() == 1
        mean, std = statistics.of_labels(y) if has_numbers else ((0.0,), (1.0,))
        shape = tuple(y.shape[1:])
        return cls(kind.classes, kind.names, shape, mean, std, kind.time_step, kind.counts(y), len(y))

    def check(self) -> None:
        """Raise ValueError for values that no data set has; they come from files that may be damaged."""
        numbers = (*self.answer_mean, *self.answer_std, self.time_step)
        size = math.prod((1, *self.answer_shape))
        # The numbers in `min((1, ...))` are harmless values: min() of an empty sequence raises an error.
        for fits, what in (
            (all(map(math.isfinite, numbers)), "numbers that are finite"),
            (min((*self.answer_std, self.time_step), default=0) > 0, "answer_std and time_step above 0"),
            (0 <= self.classes <= _MOST_CLASSES, "classes"),
            (self.class_names is None or len(self.class_names) == self.classes, "class_names"),
            (len(self.answer_shape) <= _MOST_DIMENSIONS and size <= LARGEST_SAMPLE, "answer_shape"),
            (min((1, *self.answer_shape)) > 0 and len(self.answer_mean) == len(self.answer_std) > 0, "answers"),
            (len(self.class_counts) in (0, self.classes) and min((0, *self.class_counts)) == 0, "class_counts"),
        ):
            if not fits:
                raise ValueError(f"{what} cannot be so")


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a data set. It is saved with a run, so that predictions repeat what training did.

    Args:
        scaling: how raw samples become inputs.
        labels: facts about the training labels.
        vocabulary: for tokens of a text, how they are made; see `bpfree.data.vocabulary`. None if that is not known.

    Example:
        >>> from bpfree.data import Labels
        >>> images = Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> preprocess = Preprocess.of(Dataset("mine", images, None, Labels(2)), images)
        >>> preprocess.shape, preprocess.classes, preprocess(images.x).unique()
        ((1, 2, 2), 2, tensor([0.]))
    """

    scaling: Scaling
    labels: LabelFacts
    vocabulary: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "Preprocess":
        """Return the preprocessing for a training split.

        Args:
            dataset: where the split comes from.
            train: the samples and labels that statistics are computed from.
        """
        return cls(Scaling.of(dataset, train.x), LabelFacts.of(dataset, train), dataset.labels.vocabulary)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Preprocess":
        """Return the preprocessing that `save` wrote, from values that may be damaged.

        Args:
            saved: one flat mapping with the fields of `Scaling` and of `LabelFacts`, as every version has written it.

        Raises:
            UserError: a value is missing, of the wrong type, or impossible.
        """
        try:
            # Each adapter takes its fields from the same mapping, and passes over those of the other.
            scaling, labels = (
                TypeAdapter(Scaling).validate_python(saved),
                TypeAdapter(LabelFacts).validate_python(saved),
            )
            vocabulary: str | None = TypeAdapter(str | None).validate_python(saved.get("vocabulary"))
            loaded = cls(scaling, labels, vocabulary)
            loaded.check()
        except ValueError as error:  # ValidationError of pydantic is one
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"checkpoint: its preprocessing is damaged ({where}: {first['msg']})") from error
        return loaded

    def save(self) -> dict[str, Any]:
        """Return one flat mapping of plain values for JSON.

        Each of several inputs carries the facts about the labels, too: earlier versions read it as a whole
        preprocessing.
        """
        labels = asdict(self.labels)
        scaling = asdict(self.scaling)
        inputs = [(name, {**part, **labels}) for name, part in scaling.pop("inputs")]
        for _, part in inputs:
            part.pop("inputs")
        vocabulary = {} if self.vocabulary is None else {"vocabulary": self.vocabulary}
        return {**scaling, **labels, **vocabulary, **({"inputs": tuple(inputs)} if inputs else {})}

    def check(self) -> None:
        """Raise ValueError for values that no data set has; they come from files that may be damaged."""
        self.scaling.check()
        self.labels.check()
        size = None if self.vocabulary is None else len(bytes_of_tokens(self.vocabulary))
        if self.labels.answer_shape and size not in (None, self.classes):  # else its tokens are not the labels
            raise ValueError("vocabulary cannot be so")

    def __call__(self, x: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
        """Return the input of a net for raw samples [B, ...]; see `Scaling`."""
        return self.scaling(x, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.scaling.shape

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the samples, one value or one for each channel."""
        return self.scaling.mean

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of the samples, one value or one for each channel."""
        return self.scaling.std

    @property
    def white(self) -> float:
        """The raw value of a white pixel."""
        return self.scaling.white

    @property
    def dtype(self) -> str:
        """The type of raw samples, such as "uint8"."""
        return self.scaling.dtype

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value of what an autoencoder rebuilds."""
        return self.scaling.limits

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """The features of a table; None for other data."""
        return self.scaling.columns

    @property
    def inputs(self) -> tuple[tuple[str, Scaling], ...]:
        """The scaling of each of several inputs, by name; () for a net of one input."""
        return self.scaling.inputs

    @property
    def classes(self) -> int:
        """The number of classes C; 0 if labels are numbers."""
        return self.labels.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """A name for each class; None if classes have only numbers."""
        return self.labels.class_names

    @property
    def class_texts(self) -> tuple[str, ...]:
        """A text for each of the C classes: its name, or its number if classes have no names."""
        return self.class_names or tuple(map(str, range(self.classes)))

    @property
    def has_tokens(self) -> bool:
        """True if samples are tokens, integers that stand for names and pass as is."""
        return self.scaling.has_tokens

    def as_numbers(self) -> "Preprocess":
        """Return the preprocessing that turns integers into floating numbers, because they are not tokens."""
        return replace(self, scaling=self.scaling.as_numbers())

    def blank(self, n: int) -> Inputs:
        """Return raw samples [n, ...] of zeros."""
        return self.scaling.blank(n)

    def target(self, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return what an autoencoder rebuilds from raw samples [B, ...]; see `Scaling.target`."""
        return self.scaling.target(x, dtype)

    def unlabelled(self, x: Inputs) -> Split:
        """Return a split of raw samples [N, ...] whose labels are zeros, for predictions without labels."""
        dtype = torch.int64 if self.classes else torch.float32
        return Split(x, torch.zeros(count(x), *self.labels.answer_shape, dtype=dtype))
