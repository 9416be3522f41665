"""The nouns that everything shares.

Shape legend, used in comments and docstrings throughout:
    B batch, D output or target width, C classes, E label embedding, H hidden width,
    P population, N parameters, L segments, T diffusion steps.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, from_arrays, main_input, one_tensor, tensors_of

ALL_TASKS = ("classify", "multilabel", "segment", "reconstruct", "regress", "sequence")
"""Names in `bpfree.tasks.TASKS`, for rules to say which they can do."""

Scalars = dict[str, Tensor]
"""Detached 0-d tensors by name. They stay on the device: reading one would stall a GPU."""


class Batch(NamedTuple):
    """One minibatch, preprocessed and on the device."""

    x: Inputs  # [B, ...], or several tensors [B, ...]; see `bpfree.inputs`
    y: Tensor  # [B] class index, [B, H, W] one for each pixel, or [B, ...] what to rebuild or to predict

    @classmethod
    def of(cls, given: Any, like: Tensor) -> "Batch":
        """A batch from what a user has: a Batch, or a pair (x, y) of arrays or tensors.

        Args:
            given: the batch; its x may be a tuple or a dict of arrays or tensors.
            like: a parameter of the net, for the device and the floating type of what is not a tensor yet.

        Raises:
            UserError: it is no such pair.
        """
        if isinstance(given, cls) and all(isinstance(t, Tensor) for t in (*tensors_of(given.x), given.y)):
            return given
        if not isinstance(given, tuple | list) or len(given) != 2:
            found = type(given).__name__
            raise UserError(f"batch: found {found}, allowed: Batch(x, y), or a pair (x, y) of arrays or tensors")
        x, y = (from_arrays(values, like) for values in given)
        if not isinstance(y, Tensor):
            raise UserError(f"batch: found {type(given[1]).__name__} for the labels y, allowed: an array or a tensor")
        return cls(x, y)

    @property
    def tensor(self) -> Tensor:
        """The samples [B, ...], for code that works with a single tensor.

        Raises:
            UserError: the net takes several tensors.
        """
        return one_tensor(self.x)

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return main_input(self.x).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the samples; torch's default where they are integers, such as tokens."""
        x = main_input(self.x)
        return x.dtype if x.is_floating_point() else torch.get_default_dtype()

    def first(self, samples: int) -> "Batch":
        """The first samples."""
        return Batch(apply(self.x, lambda t: t[:samples]), self.y[:samples])

    def to(self, device: torch.device | str) -> "Batch":
        """The same samples and targets on another device; the batch itself where it lies there already."""
        return Batch(apply(self.x, lambda t: t.to(device)), self.y.to(device))


class Task(Protocol):
    """What the net is for: the target, the loss and the figures of merit.

    Nobody guesses from the type of y what a task is for: the task says it. An object without `classes`, `rebuilds` or
    `per_step` counts as if it had the default (None, False, False); a rule that must know more refuses it and says
    which attribute is missing. A task may also have these attributes:

        name: which of ALL_TASKS it is. Default: what the other attributes say; see `kind_of`.
        pixels: (H, W) if each pixel has an answer of its own, out [B, C, H, W]. Default: None.
        custom_loss: how its loss differs from the plain one, in words, such as "class_weights". Default: "".
        weight: a method (metric, batch) -> number; see `weight_of`. Default: the number of samples.
        takes_target: whether `loss` accepts in `batch.y` what `target` returned. Default: False.
    """

    @property
    def dim(self) -> int:
        """D, the width of the output."""
        ...

    @property
    def classes(self) -> int | None:
        """C: labels are indices below it, or C yes-or-no labels. None: y is what to rebuild, or numbers."""
        ...

    @property
    def rebuilds(self) -> bool:
        """Whether y is the sample itself, which is to be rebuilt."""
        ...

    @property
    def per_step(self) -> bool:
        """Whether the net answers at each of T steps, [B, T, D]."""
        ...

    def target(self, batch: Batch) -> Tensor:
        """[B, D]: one-hot labels, the flat image to rebuild, or numbers; [B*T, D] of answers at each of T steps."""
        ...

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """0-d, the mean over the batch; differentiable in `out`. Rules with heads ask it for the heads' scores, too."""
        ...

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Detached means over the batch, among them `loss`."""
        ...


def classes_of(task: Task) -> int | None:
    """C of a task whose labels are classes; None if it has none or does not say."""
    classes: int | None = getattr(task, "classes", None)
    return classes


def pixels_of(task: Task) -> tuple[int, int] | None:
    """(H, W) of a task that has an answer for each pixel; None for others."""
    pixels: tuple[int, int] | None = getattr(task, "pixels", None)
    return pixels


def is_per_step(task: Task) -> bool:
    """Whether the task has an answer at each of T steps."""
    return bool(getattr(task, "per_step", False))


def weight_of(task: Task, metric: str, batch: Batch) -> Tensor | int:
    """How much a batch counts in the mean of a metric over several: what the task's `weight` says, or its samples."""
    weight = getattr(task, "weight", None)
    counts: Tensor | int = len(batch.y) if weight is None else weight(metric, batch)
    return counts


def kind_of(task: Task) -> str:
    """Which of ALL_TASKS a task is: its `name` if that is one of them, else what its other attributes say.

    A task that says nothing of itself counts as "regress": its y are numbers, of which only `loss` knows the meaning.
    """
    name = getattr(task, "name", None)
    if name in ALL_TASKS:
        return str(name)
    if getattr(task, "rebuilds", False):
        return "reconstruct"
    if is_per_step(task):
        return "sequence"
    if pixels_of(task) is not None:
        return "segment"
    return "regress" if classes_of(task) is None else "classify"


class Epochs(Protocol):
    """Minibatches to pass through again and again, as `bpfree.data.Batches`."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        ...
