"""What is watched while training. The trainer tells, trackers listen; none changes what is learned."""

from typing import TYPE_CHECKING, Any

from bpfree.types import Batch

if TYPE_CHECKING:
    from bpfree.trainer import Trainer

Record = dict[str, Any]
"""One line of metrics.jsonl: plain values."""


class Tracker:
    """Listens to a training. Every method does nothing unless overridden."""

    def on_start(self, trainer: "Trainer") -> None:
        """The rule is bound, and nothing is learned yet or the run is resumed."""

    def on_step(self, trainer: "Trainer", batch: Batch) -> None:
        """A step was taken."""

    def on_epoch(self, trainer: "Trainer", record: Record) -> None:
        """An epoch is over and its figures are finite; `record` may be added to."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """Ctrl-C, between two steps: the last chance to save."""

    def on_end(self) -> None:
        """Training is over, by whatever cause; give back what was taken."""
