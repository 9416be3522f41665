"""What listens to a training, and what measures one without a trace in it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.training.listener import Listener, Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars

__all__ = ["Measure", "Record", "Tracker", "read"]


class Tracker(Listener[Trainer]):
    """A base for objects that follow a training. Every method does nothing unless a subclass overrides it.

    Example:
        >>> class Count(Tracker):
        ...     steps = 0
        ...
        ...     def on_step(self, trainer: Trainer, batch: Batch) -> None:
        ...         self.steps += 1
    """


class Measure(Tracker, ABC):
    """A figure for each layer or unit, every so many steps: `measure` says which, and all else is taken care of.

    Whatever a measure does to weights, buffers, gradients, training modes or random state is undone, so a training
    that is watched comes to the weights of one that is not, to the bit. Records go into `progress.tracked`, from there
    to metrics.jsonl and TensorBoard, and are resumed with it; the seconds spent go into `progress.tracker_cost`.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name: ClassVar[str]  # in records, and in bpfree.trackers.TRACKERS
    unit: ClassVar[str] = ""  # of all its values; "" where each has its own

    def __init__(self, *, every: int = 100) -> None:
        check_positive("every", every)
        self.every = every

    @abstractmethod
    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Values by layer or unit, in the order of the net; those that are not finite are left out.

        Args:
            trainer: with the rule's `.grad` for this batch, not yet clipped.
            batch: of this step.
            scalars: what the rule returned for it.
        """

    def on_gradients(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> None:
        """Measure, if it is time to."""
        step = trainer.progress.step
        if step % self.every:
            return
        random = trainer.noise.at(step).fold("tracker", self.name).global_rng(trainer.device)
        with _timed(self.name, trainer), _untouched(trainer.net, trainer.rule), random:
            values = self.measure(trainer, batch, scalars)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        record = {"kind": "tracker", "tracker": self.name, "step": step + 1, "values": finite}
        trainer.progress.tracked.append(record)

    def needs_gradients(self, trainer: Trainer) -> None:
        """Refuse a training whose `.grad` is used up before anybody can look.

        Raises:
            UserError: the trainer has `update: fused`.
        """
        if trainer.update == "fused":
            raise self.refuse("looks at gradients, which update: fused frees as it goes. Use update: together")

    def refuse(self, why: str) -> UserError:
        """An error that names this tracker."""
        return UserError(f"trackers: {self.name} {why}")


@contextmanager
def _timed(name: str, trainer: Trainer) -> Iterator[None]:
    """Add the seconds within to the tracker's cost; a device first ends what the step has begun."""
    if trainer.device.type != "cpu":
        torch.get_device_module(trainer.device).synchronize(trainer.device)
    start = time.perf_counter()
    yield
    cost = trainer.progress.tracker_cost.setdefault(name, {"seconds": 0.0, "measurements": 0})
    cost["seconds"] += time.perf_counter() - start
    cost["measurements"] += 1


@contextmanager
def _untouched(*modules: nn.Module) -> Iterator[None]:
    """Undo what happens within to parameters, buffers, gradients and training modes, to the bit."""
    parameters = [p for module in modules for p in module.parameters()]
    gradients = [(p, p.grad) for p in parameters]
    held = [*parameters, *(gradient for _, gradient in gradients if gradient is not None)]
    saved = [(tensor, tensor.detach().clone()) for tensor in held]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(unchanged_buffers(module))
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in saved:
                    tensor.copy_(before)
            for p, gradient in gradients:
                p.grad = gradient
            for m, mode in modes:
                m.training = mode


def read(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors as numbers; they are read from the device at once."""
    if not values:
        return {}
    wide = [
        value.detach().double() if value.device.type == "cpu" else value.detach().float() for value in values.values()
    ]
    return dict(zip(values, torch.stack(wide).tolist(), strict=True))
