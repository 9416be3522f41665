"""Keepers listen to a training and keep what it comes to: in a run folder on disk, or in memory."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bpfree.data import Batches
from bpfree.disk.atomic import write_text
from bpfree.disk.events import Events, wait_for_a_new_second
from bpfree.errors import DivergedError, UserError
from bpfree.runs import checkpoint, tensor_files
from bpfree.runs.assemble import Setup
from bpfree.runs.config import MACHINE_KEYS, Config
from bpfree.runs.folder import BEST, CONFIG, LAST, METRICS, PLOTS, RESULT, take, write_metrics
from bpfree.runs.lock import FolderLock
from bpfree.trackers.logger import scalars_of
from bpfree.training.listener import Listener, Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch


class RunWriter(Listener[Trainer]):
    """Writes a training to a folder as it goes. A killed process leaves whole files and a checkpoint to resume from.

    One process at a time writes a run: the writer holds the folder's lock until `release`.

    Args:
        path: the run folder.
        config_text: the text of config.yaml for a new run; None if the run is resumed.
        extra: plain values that a checkpoint keeps for loading, such as the preprocessing.
        lock: the folder's lock, if it was taken already; default: `on_start` takes it.
    """

    def __init__(
        self, path: Path, config_text: str | None, extra: dict[str, Any], lock: FolderLock | None = None
    ) -> None:
        self.path = path
        self.config_text = config_text
        self.extra = extra
        self._lock = lock
        self._events: Events | None = None
        self._sent = 0  # how many of the trackers' records are in the events file

    def on_start(self, trainer: Trainer) -> None:
        """Save a checkpoint before the first step, so that a training that stops at any moment can be resumed.

        config.yaml is written after it. So a folder with a config always holds a checkpoint, whenever a process was
        killed.
        """
        progress = trainer.progress
        if self._lock is None:
            self._lock = take(self.path, new=self.config_text is not None)
        checkpoint.save(trainer, self.path / LAST, self.extra)
        if self.config_text is not None:
            write_text(self.path / CONFIG, self.config_text)
        checkpoint.clean(self.path, (CONFIG, METRICS, RESULT, LAST, BEST))
        checkpoint.clean(self.path / PLOTS, ("*.png", "*.gif"))
        # After a resume, this removes lines of steps behind the checkpoint. These steps are taken and written again.
        write_metrics(self.path, progress)
        # Records from before a resume are in an older events file.
        self._sent = len(progress.tracked)
        wait_for_a_new_second(self.path)
        self._events = Events(self.path, first_step=progress.step + 1)

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Write events for what trackers measured in this step."""
        assert self._events is not None
        for record in trainer.progress.tracked[self._sent :]:
            for name, value in scalars_of(record).items():
                self._events.add(name, value, record["step"])
        self._sent = len(trainer.progress.tracked)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Write metrics, checkpoints and events.

        last.ckpt is written after metrics.jsonl and best.ckpt, because a resume starts from it: a process that is
        killed in between repeats the epoch and writes all of them again.
        """
        write_metrics(self.path, trainer.progress)
        if trainer.progress.best_epoch == record["epoch"]:
            checkpoint.save(trainer, self.path / BEST, self.extra)
        checkpoint.save(trainer, self.path / LAST, self.extra)
        self._write_events(record)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Save a checkpoint between two steps, and what was measured before it."""
        write_metrics(self.path, trainer.progress, stopped="interrupted")
        checkpoint.save(trainer, self.path / LAST, self.extra)
        if self._events is not None:
            self._events.flush()

    def on_diverged(self, trainer: Trainer, error: DivergedError) -> None:
        """Write into metrics.jsonl why the training stopped; the last checkpoint stays."""
        write_metrics(self.path, trainer.progress, stopped=str(error))

    def on_end(self) -> None:
        """Close the events file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def restore_best(self, trainer: Trainer) -> None:
        """Put the weights of the best epoch back into net and rule."""
        checkpoint.load_weights(trainer, self.path / BEST)

    def replace(self, trainer: Trainer, name: str) -> None:
        """Write a checkpoint anew, after something changed the weights behind the last epoch.

        Args:
            trainer: holds the weights.
            name: of the checkpoint, such as "last.ckpt".
        """
        checkpoint.save(trainer, self.path / name, self.extra)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which says that the run is over."""
        write_text(self.path / RESULT, json.dumps(result, indent=1) + "\n")

    def release(self) -> None:
        """Give the lock back: nothing more is written."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_events(self, record: Record) -> None:
        assert self._events is not None
        for name, value in scalars_of(record).items():
            self._events.add(name, value, record["step"])
        self._events.flush()


class BestInMemory(Listener[Trainer]):
    """Holds the best weights in memory: for a training without a folder, or in a process that does not write it."""

    def __init__(self) -> None:
        self._best: list[dict[str, Any]] = []

    def hold(self, trainer: Trainer) -> None:
        """Copy the weights of net and rule."""
        modules = (trainer.net, trainer.rule)
        # Clones: a state_dict holds the weights themselves, which the next step changes.
        self._best = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Copy the weights if this epoch is the best."""
        if trainer.progress.best_epoch == record["epoch"]:
            self.hold(trainer)

    def restore_best(self, trainer: Trainer) -> None:
        """Put the weights of the best epoch back into net and rule."""
        for module, state in zip((trainer.net, trainer.rule), self._best, strict=True):
            module.load_state_dict(state)

    def replace(self, trainer: Trainer, name: str) -> None:
        """Do nothing: the trainer itself holds the weights."""

    def finish(self, result: dict[str, Any]) -> None:
        """Do nothing: the run object holds the result."""

    def release(self) -> None:
        """Do nothing: a training without a folder holds no lock."""


class PartWriter(BestInMemory):
    """Writes the parts of a process into the checkpoints of the first process, which says where they are.

    It writes when `RunWriter` does. In other modes than blocks the first process writes everything.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Write the parts into the checkpoint before the first step."""
        self._write(trainer)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Write the parts into the checkpoints of the epoch, and hold the weights if it is the best."""
        super().on_epoch(trainer, record)
        if trainer.progress.best_epoch == record["epoch"]:
            self._write(trainer)
        self._write(trainer)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Write the parts into the last checkpoint."""
        self._write(trainer)

    def replace(self, trainer: Trainer, name: str) -> None:
        """Write the parts into a checkpoint that is written anew."""
        self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        if trainer.mesh.apart is not None:
            tensor_files.write(trainer, None)


Keeper = RunWriter | BestInMemory


@contextmanager
def keeping(setup: Setup, batches: Batches, out: Path | None, resume: bool) -> Iterator[Keeper]:
    """Give the keeper of a training: memory, a new folder, or a folder whose last checkpoint is now in the trainer.

    The rule is bound first, and a new folder is made when training starts: a run that cannot begin leaves no folder. A
    folder is locked from before it is read or written until the training is over. Of several processes, the first one
    locks and writes it, and all of them read the checkpoint.

    Args:
        setup: the parts of the training; its trainer is bound if `out` is given.
        batches: of the training split; the first one shows the rule the shapes.
        out: the run folder; None keeps the training in memory.
        resume: continue the run in `out` from its last checkpoint.

    Raises:
        UserError: the folder holds another run, cannot be written, or another process writes to it; or a resume with
            another config than that of the run.
    """
    if out is None:
        yield BestInMemory()
        return
    trainer = setup.trainer
    # A resume locks before it reads: another process could still write the checkpoint.
    lock = take(out, new=False) if resume and trainer.mesh.is_first else None
    writer = RunWriter(out, None if resume else setup.config.dump(), setup.checkpoint_extra(), lock)
    keeper = writer if trainer.mesh.is_first else PartWriter()
    try:
        if resume:
            state = checkpoint.read_state(out / LAST)
            _refuse_another_config(setup.config, state.config, out)
            # "auto" must choose as it did on the machine where the run began, or the bits would differ.
            trainer.compute_as(state.precision, state.channels_last)
        # Before `load`: binding makes the heads and the optimiser that the checkpoint fills.
        trainer.bind(next(batches.epoch()), total_steps=setup.config.train.epochs * len(batches))
        if resume:
            if isinstance(keeper, BestInMemory) and checkpoint.exists(out / BEST):
                checkpoint.load_weights(trainer, out / BEST)
                keeper.hold(trainer)
            checkpoint.load(trainer, out / LAST)
            trainer.mesh.meet()  # before the first process writes it anew
        yield keeper
    finally:
        writer.release()


def _refuse_another_config(config: Config, begun: dict[str, Any], out: Path) -> None:
    """Raise UserError unless the config is the one that the run began with; keys in MACHINE_KEYS may differ."""
    begun = _in_current_form(begun)
    for section, values in config.plain().items():
        before = begun.get(section)
        if not isinstance(values, dict) or not isinstance(before, dict):
            values, before = {section: values}, {section: before}
        # The keys of both, since a key that only one of them has is a difference too.
        for key in {**before, **values}:
            if before.get(key) != values.get(key) and f"{section}.{key}" not in MACHINE_KEYS:
                raise UserError(
                    f"resume: {out} was begun with {section}.{key}={before.get(key)}, found {values.get(key)}. Resume "
                    "it with what it was begun with, or train in another folder"
                )


def _in_current_form(values: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a checkpoint, which an earlier version may have written, with the keys of this version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the user cannot change what is in a checkpoint
        try:
            return Config.model_validate(values).plain()
        except ValidationError:  # keys that no version has: the comparison names them
            return values
