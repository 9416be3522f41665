"""The base classes of trackers: `Tracker` follows a training, `Measure` measures without changing it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.spec import Described
from bpfree.training.listener import Listener, Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars

__all__ = ["OTHER_NAMES", "Measure", "Record", "Tracker", "read"]


OTHER_NAMES = {
    "on_train_begin": "on_start",
    "on_train_start": "on_start",
    "on_fit_start": "on_start",
    "on_train_batch_end": "on_step",
    "on_batch_end": "on_step",
    "on_after_backward": "on_gradients",
    "on_before_optimizer_step": "on_gradients",
    "on_epoch_end": "on_epoch",
    "on_train_epoch_end": "on_epoch",
    "on_validation_epoch_end": "on_epoch",
    "on_validation_end": "on_epoch",
    "on_train_end": "on_end",
    "on_fit_end": "on_end",
}
"""The names that methods of a tracker have in Keras and Lightning, and ours."""


class Tracker(Described, Listener[Trainer]):
    """A base for objects that follow a training. Every method does nothing unless a subclass overrides it.

    Raises:
        UserError: a subclass defines a method by its name in Keras or Lightning, which would never be called.

    Example:
        >>> class Count(Tracker):
        ...     steps = 0
        ...
        ...     def on_step(self, trainer: Trainer, batch: Batch) -> None:
        ...         self.steps += 1
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for other, name in OTHER_NAMES.items():
            if other in vars(cls) and name not in vars(cls):
                raise UserError(
                    f"{cls.__name__}.{other}: bpfree never calls it. Its name here is {name}; docs/callbacks.md shows "
                    "the names of Keras and Lightning beside ours"
                )


class Measure(Tracker, ABC):
    """A tracker that records a value for each layer or unit, at every k-th step. A subclass defines `measure`.

    This class restores weights, buffers, gradients, training modes and random state after each measurement. So a
    training with measures ends with the same weights, to the bit, as one without. The records go to
    `progress.tracked`, and from there to metrics.jsonl and TensorBoard. A resumed run contains them too. The seconds of
    the measurements go to `progress.tracker_cost`.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.

    Attributes:
        name: name of the tracker in records and in `bpfree.trackers.TRACKERS`.
        unit: the unit of all its values; "" if they do not share one.

    Example:
        >>> class LargestWeight(Measure):
        ...     name = "largest_weight"
        ...
        ...     def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        ...         return read({name: p.abs().max() for name, p in trainer.net.named_parameters()})
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""

    def __init__(self, *, every: int = 100) -> None:
        check_positive("every", every)
        self.every = every

    @abstractmethod
    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return a value for each layer or unit, in the order of the net. Values that are not finite are left out.

        Args:
            trainer: the trainer. Parameters have the rule's `.grad` for this batch, not yet clipped.
            batch: the batch of this step.
            scalars: the values that the rule returned for the batch.
        """

    def wants_gradients(self, step: int) -> bool:
        """Return True at every k-th step.

        Args:
            step: the number of steps that were taken before it. A resumed run measures where the first one would have.
        """
        return step % self.every == 0

    def on_gradients(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> None:
        """Measure at every k-th step, and append the record.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        step = trainer.progress.step
        if not self.wants_gradients(step):
            return
        # A key of the tracker and the step: two trackers, or a resumed run, draw the same numbers as one alone.
        random = trainer.noise.at(step).fold("tracker", self.name).global_rng(trainer.device)
        with _timed(self.name, trainer), _untouched(trainer.net, trainer.rule), random:
            values = self.measure(trainer, batch, scalars)
        # JSON has no NaN, and a layer without a gradient (0 / 0) must not end the training.
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        # The step that is being taken; the first is 1, as in the records of epochs.
        record = {"kind": "tracker", "tracker": self.name, "step": step + 1, "values": finite}
        trainer.progress.tracked.append(record)

    def needs_gradients(self, trainer: Trainer) -> None:
        """Refuse a training in which `.grad` is freed before a tracker can read it.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the trainer has `update: fused`.
        """
        if trainer.update == "fused":
            raise self.refuse("reads gradients, but update: fused frees them within the step. Use update: together")

    def refuse(self, why: str) -> UserError:
        """Return an error that names this tracker.

        Args:
            why: the rest of the sentence, and the cure.
        """
        return UserError(f"trackers: {self.name} {why}")


@contextmanager
def _timed(name: str, trainer: Trainer) -> Iterator[None]:
    """Add the seconds of the block to the tracker's cost."""
    # A GPU works behind. Without this, a tracker that reads a value would be charged for the rest of the step.
    if trainer.device.type != "cpu":
        torch.get_device_module(trainer.device).synchronize(trainer.device)
    start = time.perf_counter()
    yield
    cost = trainer.progress.tracker_cost.setdefault(name, {"seconds": 0.0, "measurements": 0})
    cost["seconds"] += time.perf_counter() - start
    cost["measurements"] += 1


@contextmanager
def _untouched(*modules: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, gradients and training modes after the block, to the bit."""
    parameters = [p for module in modules for p in module.parameters()]
    gradients = [(p, p.grad) for p in parameters]
    tensors = [*parameters, *(gradient for _, gradient in gradients if gradient is not None)]
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(unchanged_buffers(module))
        try:
            yield
        finally:
            # The same tensor objects get their values back: the optimiser and the rule hold references to them.
            with torch.no_grad():
                for tensor, before in saved:
                    tensor.copy_(before)
            for p, gradient in gradients:
                p.grad = gradient
            for m, mode in modes:
                m.training = mode


def read(values: dict[str, Tensor]) -> dict[str, float]:
    """Return 0-d tensors as numbers. They are read from the device together, because each read waits for it.

    Args:
        values: tensors by name, on one device.
    """
    if not values:
        return {}
    # float64 where there is one: MPS does not have it.
    wide = [
        value.detach().double() if value.device.type == "cpu" else value.detach().float() for value in values.values()
    ]
    return dict(zip(values, torch.stack(wide).tolist(), strict=True))
