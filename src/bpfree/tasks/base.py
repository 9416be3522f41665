"""The base class of the tasks in `bpfree.tasks.TASKS`. Beyond `bpfree.types.Task` they know their data and decode."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from bpfree.data.labels import Answers
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.spec import Described
from bpfree.types import Batch, Scalars, Task

Loss = Callable[[Tensor, Tensor], Tensor]
"""The user's own loss: takes the outputs and the labels y of a batch, and returns the loss, 0-d."""

Weights = Literal["balanced"] | Sequence[float]
"""Class weights: a number for each class, or "balanced", which computes them from the training samples."""


class Tally(Protocol):
    """Metrics of a split that are not means over samples. They are computed batch by batch."""

    def add(self, out: Tensor, batch: Batch) -> None:
        """Add the outputs [B, D] of a batch."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all batches so far."""
        ...


class DataTask(Described, ABC):
    """A task that is made for a data set.

    Attributes:
        name: its name in the table TASKS. Rules list these names to say which tasks they can train for.
        answers: how labels are read from Python, see `bpfree.data.labels`.
        rebuilds: True if samples are their own targets, so that labels are not needed.
        values: True if targets are numbers, and not classes.
        per_step: True if the net answers at each step of a sequence, [B, T, D].
        classes: C, or None if labels are not classes.
        pixels: (H, W) if each pixel has its own answer, else None.
        user_loss: the user's loss, in place of the task's; None for that of the task. Set it with `use_loss`.
    """

    name: ClassVar[str]
    answers: ClassVar[Answers] = "class"
    rebuilds: bool = False
    values: ClassVar[bool] = False
    per_step: bool = False
    classes: int | None = None
    pixels: tuple[int, int] | None = None
    user_loss: Loss | None = None

    @property
    @abstractmethod
    def dim(self) -> int:
        """The width D of the output."""

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """Return the target that the output shall become, [B, D], or [B*T, D] if the task is `per_step`."""

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the user's loss, or else that of the task.

        Args:
            out: the output of the net, or the scores of a rule's head.
            batch: the samples and labels.

        Returns:
            0-d, the mean over the batch, differentiable in `out`.

        Raises:
            UserError: the output does not have the shape that the task needs, or the user's loss is not one number.
        """
        # Checked before the user's loss, too: broadcasting would turn a wrong shape silently into a wrong number.
        out = self.check_output(out, batch)
        if self.user_loss is None:
            return self.plain_loss(out, batch)
        loss = self.user_loss(out, batch.y)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            form = f"the shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"the type {type(loss).__name__}"
            raise UserError(f"loss: its value has {form}, allowed: a tensor with one number, such as .mean()")
        return loss

    @abstractmethod
    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the output in the shape that the loss takes, in float32 or wider.

        Raises:
            UserError: the output has another shape.
        """

    @abstractmethod
    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the task's loss, 0-d, for an output that `check_output` returned."""

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return means over the batch by name, detached: `loss` and `other_metrics`."""
        return {"loss": self.loss(out.detach(), batch), **self.other_metrics(out.detach(), batch)}

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return the metrics of a batch without its loss, for an output without a graph; default: none."""
        return {}

    @abstractmethod
    def decode(self, out: Tensor) -> Tensor:
        """Return outputs [N, D] as answers for people: classes, samples, or numbers in the units of the data."""

    def use_loss(self, loss: Loss | None) -> None:
        """Set the user's loss, a function (out, y) -> 0-d; None restores the loss of the task."""
        self.user_loss = loss

    @property
    def custom_loss(self) -> str:
        """A description of how the loss differs from the plain one, in words; "" if it does not differ."""
        return "" if self.user_loss is None else "a loss of your own"

    @property
    def takes_target(self) -> bool:
        """True if `loss` accepts in `batch.y` what `target` returned. The user's loss needs the labels as they are."""
        # A class of the user's that derives from a task may read y in its own way.
        return self.user_loss is None and type(self).__module__.startswith("bpfree.tasks.")

    def weight(self, metric: str, batch: Batch) -> Tensor | int:
        """Return how much a batch counts in the mean of a metric over a split; default: its number of samples."""
        return len(batch.y)

    def check_batch(self, batch: Batch) -> None:
        """Check the labels of a first batch. It is called once, so it may read values from a GPU.

        Raises:
            UserError: the task cannot use such labels.
        """

    def prepare(self, split: Split) -> Split:
        """Return the split with labels in the units of the net's output; default: the split as it is."""
        return split

    def tally(self, net: nn.Module | None) -> Tally | None:
        """Return an empty Tally for metrics that are not means over samples; default: None.

        Args:
            net: the net whose outputs will be added; None if only outputs are known.
        """
        return None

    def probabilities(self, out: Tensor) -> Tensor:
        """Return the probability of each class, in the shape of the outputs [N, C] or [N, C, H, W].

        Raises:
            UserError: the task has no classes.
        """
        raise UserError(f"predict_proba: the run's task, {self.name}, has no classes. Use predict")


def metrics_of(task: Task, out: Tensor, batch: Batch, loss: Tensor) -> Scalars:
    """Return the metrics of an output whose loss is known, so that the loss is not computed a second time.

    Args:
        task: any task.
        out: the output, without a graph.
        batch: the samples and labels.
        loss: the task's loss of the output, detached.
    """
    if isinstance(task, DataTask) and type(task).metrics is DataTask.metrics:
        return {"loss": loss, **task.other_metrics(out, batch)}
    return task.metrics(out, batch) | {"loss": loss}


class ClassWeights:
    """Weights of classes or labels, which are copied once to the device and type of the outputs.

    Args:
        values: a weight for each class, 0 or more, at least one above 0.
        count: the number of classes.
        what: the option, for errors.

    Raises:
        UserError: there are more or fewer weights, or they are not finite, below 0, or all 0.
    """

    def __init__(self, values: Sequence[float], count: int, what: str) -> None:
        # float64 keeps the user's numbers exact until the type of the outputs is known.
        self.values = torch.tensor(list(values), dtype=torch.float64)
        if self.values.shape != (count,):
            raise UserError(f"{what}: found {len(self.values)} numbers, allowed: {count}, one for each class")
        if not bool(self.values.isfinite().all()) or bool((self.values < 0).any()) or not bool(self.values.any()):
            raise UserError(f"{what}: found {list(values)}, allowed: finite numbers from 0 on, not all of them 0")
        self._moved = self.values

    def like(self, out: Tensor) -> Tensor:
        """Return the weights [C] in the type and on the device of `out`."""
        # Kept between calls: a copy to the GPU in every step would make the CPU wait.
        if self._moved.dtype != out.dtype or self._moved.device != out.device:
            self._moved = self.values.to(out)
        return self._moved


def check_smoothing(smoothing: float) -> None:
    """Raise UserError unless the label smoothing is from 0 to below 1."""
    if not 0 <= smoothing < 1:
        raise UserError(f"task.label_smoothing: found {smoothing}, allowed: a number from 0 to below 1, such as 0.1")


def balanced(counts: Sequence[int], total: float, option: str) -> list[float]:
    """Return the weights total / (C n_c) of C classes with n_c training samples each.

    Args:
        counts: n_c of each class.
        total: the number of samples, or of pixels that count.
        option: the name of the task's option, for errors.

    Raises:
        UserError: a class has no training sample, or samples were not counted.

    Example:
        >>> balanced([1, 3], 4, "class_weights")
        [2.0, 0.6666666666666666]
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
    """Return the names of the options that are set, joined by "and"."""
    return " and ".join(name for name, value in parts.items() if value)


def form_of(out: object) -> str:
    """Return the shape of an output, or its type if it is not a tensor, for messages."""
    return str(list(out.shape)) if isinstance(out, Tensor) else type(out).__name__


def widened(out: Tensor) -> Tensor:
    """Return the output in float32 or wider: a loss in 16 bits loses too much precision."""
    return out.float() if out.itemsize < 4 else out
