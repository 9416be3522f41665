"""The types that all modules share: Batch, Task and Epochs.

Letters for shapes, in all comments and docstrings:
    B batch, D width of the output or target, C classes, E width of a label embedding, H hidden width,
    P population, N parameters or samples, L segments, T steps of a sequence or of diffusion.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, from_arrays, main_input, one_tensor, tensors_of

ALL_TASKS = ("classify", "multilabel", "segment", "reconstruct", "regress", "sequence", "language")
"""All names in `bpfree.tasks.TASKS`. A rule lists the tasks that it can train for."""

Scalars = dict[str, Tensor]
"""Detached 0-d tensors by name. They stay on the device, because reading a value makes the CPU wait for the GPU."""


class Batch(NamedTuple):
    """A minibatch, preprocessed and on the device.

    Attributes:
        x: samples [B, ...], or several tensors [B, ...]; see `bpfree.inputs`.
        y: labels: class indices [B], one for each pixel [B, H, W] or token [B, T], or the values to rebuild or predict
            [B, ...].
    """

    x: Inputs
    y: Tensor

    @classmethod
    def of(cls, given: Any, like: Tensor) -> "Batch":
        """Make a batch from a Batch, or from a pair (x, y) of arrays or tensors.

        Args:
            given: the user's batch; its x may be a tuple or a dict of arrays or tensors.
            like: a parameter of the net, which has the device and the floating type of the result.

        Raises:
            UserError: `given` is not such a pair.

        Example:
            >>> Batch.of(([[1, 2], [3, 4]], [0, 1]), torch.zeros(1)).y
            tensor([0, 1])
        """
        if isinstance(given, cls) and all(isinstance(t, Tensor) for t in (*tensors_of(given.x), given.y)):
            return given
        # A Batch that holds arrays is also a tuple of two, and is converted like one.
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise UserError(
                f"batch: found {type(given).__name__}, allowed: Batch(x, y), or a pair (x, y) of arrays or tensors"
            )
        x, y = (from_arrays(values, like) for values in given)
        if not isinstance(y, Tensor):
            raise UserError(f"batch: found {type(given[1]).__name__} for the labels y, allowed: an array or a tensor")
        return cls(x, y)

    @property
    def tensor(self) -> Tensor:
        """The samples [B, ...], for code that works with a single tensor.

        Raises:
            UserError: the samples are several tensors.
        """
        return one_tensor(self.x)

    @property
    def device(self) -> torch.device:
        """The device of the samples."""
        return main_input(self.x).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the samples; torch's default type if they are integers, such as tokens."""
        x = main_input(self.x)
        return x.dtype if x.is_floating_point() else torch.get_default_dtype()

    def first(self, samples: int) -> "Batch":
        """Return a batch of the first `samples` samples."""
        return Batch(apply(self.x, lambda t: t[:samples]), self.y[:samples])

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device; tensors that are there already are not copied."""
        return Batch(apply(self.x, lambda t: t.to(device)), self.y.to(device))


class Task(Protocol):
    """The purpose of a net: the target, the loss and the metrics.

    The task says what kind it is; no code guesses it from the type of y. An object without `classes`, `rebuilds` or
    `per_step` is treated as if it had the default (None, False, False). A rule that must know more refuses such an
    object, and names the missing attribute. A task may also have these attributes:

        name: which of ALL_TASKS it is. Default: the other attributes decide; see `kind_of`.
        pixels: (H, W) if each pixel has its own answer, out [B, C, H, W]. Default: None.
        custom_loss: how its loss differs from the plain one, in words, such as "class_weights". Default: "".
        weight: a method (metric, batch) -> number; see `weight_of`. Default: the number of samples.
        takes_target: True if `loss` accepts in `batch.y` what `target` returned. Default: False.
    """

    @property
    def dim(self) -> int:
        """The width D of the output."""
        ...

    @property
    def classes(self) -> int | None:
        """C, if labels are indices below C, or C yes-or-no labels; None if y is the sample to rebuild, or numbers."""
        ...

    @property
    def rebuilds(self) -> bool:
        """True if y is the sample itself, which an autoencoder rebuilds."""
        ...

    @property
    def per_step(self) -> bool:
        """True if the net answers at each of T steps, [B, T, D]."""
        ...

    def target(self, batch: Batch) -> Tensor:
        """Return the target [B, D]: one-hot labels, the flat image to rebuild, or numbers.

        It is [B*T, D] if the task is `per_step`. Of many classes at each step (`language`) it is their indices [B*T].
        """
        ...

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the batch, 0-d and differentiable in `out`; rules pass scores of heads, too."""
        ...

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return means over the batch by name, detached; `loss` is among them."""
        ...


def classes_of(task: Task) -> int | None:
    """Return C of a task whose labels are classes; None if it has no classes or does not say."""
    classes: int | None = getattr(task, "classes", None)
    return classes


def pixels_of(task: Task) -> tuple[int, int] | None:
    """Return (H, W) of a task with an answer for each pixel; None for other tasks."""
    pixels: tuple[int, int] | None = getattr(task, "pixels", None)
    return pixels


def is_per_step(task: Task) -> bool:
    """Return True if the task has an answer at each of T steps."""
    return bool(getattr(task, "per_step", False))


def weight_of(task: Task, metric: str, batch: Batch) -> Tensor | int:
    """Return how much a batch counts in the mean of a metric over several batches.

    A mean over a split must not depend on the batch size. So a task whose loss divides by something other than the
    number of samples, such as the sum of class weights, returns that from its `weight`.

    Args:
        task: the task, which may have a method `weight`.
        metric: the name of the metric.
        batch: the batch whose metric it is.

    Returns:
        The weight of the batch; by default the number of its samples.
    """
    weight = getattr(task, "weight", None)
    # A tensor stays on its device. Its value is read once for a whole split, and not in every batch.
    counts: Tensor | int = len(batch.y) if weight is None else weight(metric, batch)
    return counts


def kind_of(task: Task) -> str:
    """Return which of ALL_TASKS a task is: its `name` if that is one of them, else what its other attributes say.

    A task without such attributes counts as "regress": its y are numbers, and only `loss` knows their meaning.

    Args:
        task: the task, which may be the user's own.
    """
    name = getattr(task, "name", None)
    # The user's task may have a `name` with another meaning, so an unknown name is not an error.
    if name in ALL_TASKS:
        return str(name)
    if getattr(task, "rebuilds", False):
        return "reconstruct"
    if is_per_step(task):
        return "sequence"
    if pixels_of(task) is not None:
        return "segment"
    # The order above matters: a task per step or per pixel may have classes, too.
    return "regress" if classes_of(task) is None else "classify"


class Epochs(Protocol):
    """Minibatches that can be iterated over many times, as `bpfree.data.Batches`."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from 0."""
        ...
