"""What the tasks in `bpfree.tasks.TASKS` have beyond `bpfree.types.Task`: a name, data, and answers for people."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from bpfree.data.dataset import Split
from bpfree.data.labels import Answers
from bpfree.errors import UserError
from bpfree.types import Batch, Scalars

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and labels y of a batch, each as the task has them -> the loss, 0-d."""

Weights = Literal["balanced"] | Sequence[float]


class Tally(Protocol):
    """Figures of a split that are not means over samples. It is told of the split batch by batch."""

    def add(self, out: Tensor, batch: Batch) -> None:
        """Take in the outputs [B, D] of a batch."""
        ...

    def metrics(self) -> dict[str, float]:
        """The figures of all batches so far."""
        ...


class DataTask(ABC):
    """A task that is made for a data set.

    Attributes:
        name: in the table TASKS; rules say by it which tasks they can do.
        answers: how labels from Python are read, see `bpfree.data.labels`.
        rebuilds: whether samples are their own targets, so that labels are not needed.
        values: whether targets are numbers and not classes.
        per_step: whether the net answers at each step of a sequence, [B, T, D].
        classes: C, or None if there are no classes.
        pixels: (H, W) if each pixel has an answer of its own, else None.
        own_loss: a loss of the user's own, in place of the task's; set it with `use_loss`.
    """

    name: ClassVar[str]
    answers: ClassVar[Answers] = "class"
    rebuilds: ClassVar[bool] = False
    values: ClassVar[bool] = False
    per_step: ClassVar[bool] = False
    classes: int | None = None
    pixels: tuple[int, int] | None = None
    own_loss: Loss | None = None

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the width of the output."""

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """[B, D], or [B*T, D] if the task is `per_step`: what the output is to become."""

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """0-d, the mean over the batch, differentiable in `out`: the user's own loss, or else that of the task.

        Raises:
            UserError: the output does not have the shape that the task needs, or an own loss is not one number.
        """
        out = self.check_output(out, batch)
        if self.own_loss is None:
            return self.plain_loss(out, batch)
        loss = self.own_loss(out, batch.y)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            found = f"the shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"loss: its value has {found}, allowed: a tensor with one number, such as .mean()")
        return loss

    @abstractmethod
    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """The output in the shape that the loss takes, in float32 or wider.

        Raises:
            UserError: it has another shape.
        """

    @abstractmethod
    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """The task's loss of an output that `check_output` has passed."""

    @abstractmethod
    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Detached means over the batch, among them `loss`."""

    @abstractmethod
    def decode(self, out: Tensor) -> Tensor:
        """Outputs [N, D] as answers: classes, samples or numbers in their own units."""

    def use_loss(self, loss: Loss | None) -> None:
        """Learn by a loss of the user's own, (out, y) -> 0-d; None: by that of the task."""
        self.own_loss = loss

    @property
    def custom_loss(self) -> str:
        """In words, how the loss differs from the plain one; "" if it does not."""
        return "" if self.own_loss is None else "a loss of your own"

    @property
    def takes_target(self) -> bool:
        """Whether `loss` accepts in `batch.y` what `target` returned; a loss of the user's own sees y as it is."""
        return self.own_loss is None and type(self).__module__.startswith("bpfree.tasks.")

    def weight(self, metric: str, batch: Batch) -> Tensor | int:
        """How much a batch counts in the mean of a metric over a split; default: its number of samples."""
        return len(batch.y)

    def check_batch(self, batch: Batch) -> None:  # noqa: B027
        """Look at the labels of a first batch. It may read values, since it is called once.

        Raises:
            UserError: they are not what the task is for.
        """

    def prepare(self, split: Split) -> Split:
        """The split with its answers in the units of the net's output; default: as it is."""
        return split

    def tally(self, net: nn.Module | None) -> Tally | None:
        """For a split to be judged by more than means over samples; default: no more.

        Args:
            net: whose outputs will be told; None if there are none but outputs.
        """
        return None

    def probabilities(self, out: Tensor) -> Tensor:
        """The probability of each class, of the shape of the outputs [N, C] or [N, C, H, W].

        Raises:
            UserError: the task has no classes.
        """
        raise UserError(f"predict_proba: the run's task, {self.name}, has no classes. Use predict")


class ClassWeights:
    """Weights of classes or labels, which move to where they are needed.

    Args:
        values: one for each class, 0 or more.
        count: how many there must be.
        what: the option, for errors.
    """

    def __init__(self, values: Sequence[float], count: int, what: str) -> None:
        self.values = torch.tensor(list(values), dtype=torch.float64)
        if self.values.shape != (count,):
            raise UserError(f"{what}: found {len(self.values)} numbers, allowed: {count}, one for each class")
        if not bool(self.values.isfinite().all()) or bool((self.values < 0).any()) or not bool(self.values.any()):
            raise UserError(f"{what}: found {list(values)}, allowed: finite numbers from 0 on, not all of them 0")
        self._moved = self.values

    def like(self, out: Tensor) -> Tensor:
        """The weights [C] with the type and on the device of `out`."""
        if self._moved.dtype != out.dtype or self._moved.device != out.device:
            self._moved = self.values.to(out)
        return self._moved


def check_smoothing(found: float) -> None:
    """Raise UserError unless a label smoothing is from 0 to below 1."""
    if not 0 <= found < 1:
        raise UserError(f"task.label_smoothing: found {found}, allowed: a number from 0 to below 1, such as 0.1")


def balanced(counts: Sequence[int], total: float, option: str) -> list[float]:
    """Weights total / (C n_c) of C classes with n_c training samples each.

    Raises:
        UserError: a class has none.
    """
    if not counts:
        raise UserError(f"task.{option}: found balanced, but the samples of each class are not counted. List numbers")
    if 0 in counts:
        raise UserError(
            f"task.{option}: found balanced, but class {list(counts).index(0)} has no training sample. Give a list of "
            "numbers, one for each class"
        )
    return [total / (len(counts) * count) for count in counts]


def custom_parts(**parts: object) -> str:
    """The names of the options that are in use, joined by "and"."""
    return " and ".join(name for name, value in parts.items() if value)


def form_of(out: object) -> str:
    """The shape of an output, or its type if it is not a tensor, for messages."""
    return str(list(out.shape)) if isinstance(out, Tensor) else type(out).__name__


def widened(out: Tensor) -> Tensor:
    """The output in float32 or wider."""
    return out.float() if out.itemsize < 4 else out
