"""The calls that a training makes while it runs, and a base class for the objects that receive them.

The trainer knows only this module; `bpfree.trackers` builds on the trainer. So imports point one way.
"""

from typing import Any, Generic, TypeVar

from bpfree.errors import DivergedError
from bpfree.types import Batch, Scalars

Record = dict[str, Any]
"""One line of metrics.jsonl, or another mapping of plain values."""

TrainerT = TypeVar("TrainerT")


class Listener(Generic[TrainerT]):
    """A base for objects that follow a training. Every method does nothing unless a subclass overrides it.

    The type parameter is the trainer that the methods receive. `bpfree.trackers.Tracker` sets it to `Trainer`; this
    module cannot, because the trainer imports it.
    """

    @property
    def listens_to_gradients(self) -> bool:
        """True if the class overrides `on_gradients`; a step calls only such listeners."""
        return type(self).on_gradients is not Listener.on_gradients

    def wants_gradients(self, step: int) -> bool:
        """Return True if `on_gradients` looks at a step. Where it does not, the step may be a replayed one.

        A subclass that looks at some steps only overrides it; see `bpfree.training.graphs`.

        Args:
            step: the number of steps that were taken before it.
        """
        return self.listens_to_gradients

    def on_config(self, config: Record) -> None:
        """Receive the config before `on_start`, in a run: `bpfree.fit`, `resume` and the command line call it.

        A `Trainer` by itself has no config and does not call it. After it comes `on_result`, unless the run fails.

        Args:
            config: the sections of the config as plain values.
        """

    def on_start(self, trainer: TrainerT) -> None:
        """Receive the trainer before the first step: the rule is bound; in a resumed run, the checkpoint is loaded.

        Args:
            trainer: the trainer. Its `data` are the training batches.

        Raises:
            UserError: the listener cannot follow this training.
        """

    def on_gradients(self, trainer: TrainerT, batch: Batch, scalars: Scalars) -> None:
        """Look at the gradients within a step: `.grad` is written, but not clipped, and no weight has moved.

        With `update: fused` each segment has moved already, and its `.grad` is freed. A listener that does not
        override this method costs a step nothing.

        Args:
            trainer: the trainer. `trainer.progress.step` steps were taken before this one, and
                `trainer.noise.at(trainer.progress.step)` is the random key of this one.
            batch: the batch of this step.
            scalars: the values that the rule returned.
        """

    def on_step(self, trainer: TrainerT, batch: Batch) -> None:
        """Note that a step was taken. `trainer.stop(why)` ends the training after it.

        Args:
            trainer: the trainer. `trainer.progress.step` counts this step too.
            batch: the batch of this step.
        """

    def on_epoch(self, trainer: TrainerT, record: Record) -> None:
        """React to the end of an epoch whose losses and weights are all finite. `trainer.stop(why)` ends the training.

        Args:
            trainer: the trainer.
            record: the epoch's line of metrics.jsonl. A listener may add to it.
        """

    def on_interrupt(self, trainer: TrainerT) -> None:
        """Save what must be saved: the user pressed Ctrl-C, and the training stops between two steps."""

    def on_diverged(self, trainer: TrainerT, error: DivergedError) -> None:
        """React to a training that ends, because a loss or a weight is not finite; the epoch that runs is not recorded.

        Args:
            trainer: the trainer.
            error: the error that `fit` will raise.
        """

    def on_end(self) -> None:
        """Release resources: the training is over, whatever the reason."""

    def on_result(self, result: Record) -> None:
        """Receive the result of a run, after `on_end`: the net was evaluated on the test split.

        Args:
            result: as result.json holds it.
        """
