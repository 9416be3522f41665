"""A tracker made of functions."""

from collections.abc import Callable
from typing import Any

from bpfree.errors import UserError
from bpfree.trackers.base import Tracker
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch


class Callback(Tracker):
    """A tracker made of functions. Each is called as the method of `Tracker` that has its name.

    Args:
        on_start: (trainer), before the first step.
        on_step: (trainer, batch), after each step.
        on_epoch: (trainer, record), after each epoch.
        on_end: (), when the training is over.
        on_result: (result), when the net was evaluated on the test split; in a run only.

    Raises:
        UserError: an argument is not a function.

    Example:
        >>> losses = []
        >>> keep = Callback(on_epoch=lambda trainer, record: losses.append(record["train"]["loss"]))
    """

    def __init__(
        self,
        *,
        on_start: Callable[[Trainer], Any] | None = None,
        on_step: Callable[[Trainer, Batch], Any] | None = None,
        on_epoch: Callable[[Trainer, Record], Any] | None = None,
        on_end: Callable[[], Any] | None = None,
        on_result: Callable[[Record], Any] | None = None,
    ) -> None:
        given: dict[str, Callable[..., Any] | None] = {
            "on_start": on_start,
            "on_step": on_step,
            "on_epoch": on_epoch,
            "on_end": on_end,
            "on_result": on_result,
        }
        for name, function in given.items():
            if function is not None and not callable(function):
                raise UserError(f"Callback.{name}: found {type(function).__name__}, allowed: a function")
        self._functions = {name: function for name, function in given.items() if function is not None}

    def on_start(self, trainer: Trainer) -> None:
        """Call the function of this name."""
        self._call("on_start", trainer)

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Call the function of this name."""
        self._call("on_step", trainer, batch)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Call the function of this name."""
        self._call("on_epoch", trainer, record)

    def on_end(self) -> None:
        """Call the function of this name."""
        self._call("on_end")

    def on_result(self, result: Record) -> None:
        """Call the function of this name."""
        self._call("on_result", result)

    def _call(self, name: str, *arguments: Any) -> None:
        if function := self._functions.get(name):
            function(*arguments)
