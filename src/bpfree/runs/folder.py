"""The folder of a run: config.yaml, metrics.jsonl, result.json, last.ckpt, best.ckpt, events for TensorBoard, plots."""

import json
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from bpfree.disk.atomic import refuse_to_replace, write_text
from bpfree.disk.paths import refuse_system_folder, user_path
from bpfree.disk.plain import read_yaml
from bpfree.errors import DivergedError, UserError
from bpfree.runs import checkpoint, saved
from bpfree.runs.events import PATTERN, Events
from bpfree.runs.lock import FolderLock
from bpfree.trackers import Record, Tracker
from bpfree.training.progress import Progress
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

CONFIG, METRICS, RESULT, LAST, BEST = "config.yaml", "metrics.jsonl", "result.json", "last.ckpt", "best.ckpt"
PLOTS = "plots"


class RunFolder(Tracker):
    """Writes a training to a folder as it goes. A killed process leaves whole files and a checkpoint to resume from.

    One process at a time writes a run: it holds the folder's lock until `release`.

    Args:
        path: of the folder.
        config_text: of config.yaml for a new run; None if the run is resumed.
        extra: plain values that a checkpoint keeps for loading, such as the preprocessing.
        lock: of the folder, if it is held already.
    """

    def __init__(
        self, path: Path, config_text: str | None, extra: dict[str, Any], lock: FolderLock | None = None
    ) -> None:
        self.path = path
        self.config_text = config_text
        self.extra = extra
        self._lock = lock
        self._events: Events | None = None
        self._sent = 0  # of the trackers' records

    def on_start(self, trainer: Trainer) -> None:
        """A checkpoint before the first step, so that whatever happens can be resumed.

        config.yaml comes after it: a folder with a config is a run with a checkpoint, whenever a process was killed.
        """
        progress = trainer.progress
        if self._lock is None:
            self._lock = take(self.path, new=self.config_text is not None)
        checkpoint.save(trainer, self.path / LAST, self.extra)
        if self.config_text is not None:
            write_text(self.path / CONFIG, self.config_text)
        checkpoint.clean(self.path, (CONFIG, METRICS, RESULT, LAST, BEST))
        checkpoint.clean(self.path / PLOTS, ("*.png", "*.gif"))
        write_metrics(self.path, progress)
        self._sent = len(progress.tracked)
        _wait_for_a_new_second(self.path)
        self._events = Events(self.path, first_step=progress.step + 1)

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Events of what trackers measured in this step."""
        assert self._events is not None
        for record in trainer.progress.tracked[self._sent :]:
            for name, value in record["values"].items():
                self._events.add(f"{record['tracker']}/{name}", value, record["step"])
        self._sent = len(trainer.progress.tracked)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Metrics, events, and checkpoints; the last one last, since a resume starts from it."""
        write_metrics(self.path, trainer.progress)
        if trainer.progress.best_epoch == record["epoch"]:
            checkpoint.save(trainer, self.path / BEST, self.extra)
        checkpoint.save(trainer, self.path / LAST, self.extra)
        self._write_events(record)

    def on_interrupt(self, trainer: Trainer) -> None:
        """A checkpoint between two steps, and what was measured before it."""
        write_metrics(self.path, trainer.progress, stopped="interrupted")
        checkpoint.save(trainer, self.path / LAST, self.extra)
        if self._events is not None:
            self._events.flush()

    def on_diverged(self, trainer: Trainer, error: DivergedError) -> None:
        """Why there is nothing more; the last checkpoint stays."""
        write_metrics(self.path, trainer.progress, stopped=str(error))

    def restore_best(self, trainer: Trainer) -> None:
        """Put the best weights back."""
        checkpoint.load_weights(trainer, self.path / BEST)

    def replace(self, trainer: Trainer, name: str) -> None:
        """Write a checkpoint anew: something changed the weights after the last epoch."""
        checkpoint.save(trainer, self.path / name, self.extra)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: the run is over."""
        write_text(self.path / RESULT, json.dumps(result, indent=1) + "\n")

    def on_end(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def release(self) -> None:
        """Give the lock back: nothing more is written."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_events(self, record: Record) -> None:
        assert self._events is not None
        scalars = {"lr": record["lr"], "samples_per_second": record["samples_per_second"]}
        for split in ("train", "validation"):
            scalars |= {f"{split}/{name}": value for name, value in record.get(split, {}).items()}
        for name, value in scalars.items():
            self._events.add(name, value, record["step"])
        self._events.flush()


class KeepBest(Tracker):
    """Holds the best weights in memory, for a training without a folder."""

    def __init__(self) -> None:
        self._best: list[dict[str, Any]] = []

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Copy the weights if this epoch is the best."""
        if trainer.progress.best_epoch == record["epoch"]:
            modules = (trainer.net, trainer.rule)
            self._best = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]

    def restore_best(self, trainer: Trainer) -> None:
        """Put the best weights back."""
        for module, state in zip((trainer.net, trainer.rule), self._best, strict=True):
            module.load_state_dict(state)

    def replace(self, trainer: Trainer, name: str) -> None:
        """Nothing: the trainer has the weights."""

    def release(self) -> None:
        """Do nothing: a training without a folder holds no lock."""


def write_metrics(path: Path, progress: Progress, *, stopped: str = "") -> None:
    """Trackers' records and epochs' by step; a step is measured before the epoch that it ends is over.

    Args:
        path: of the folder.
        progress: what has been.
        stopped: why the training ended early; a resume forgets it.
    """
    records = sorted([*progress.tracked, *progress.history], key=itemgetter("step"))
    if stopped:
        records.append({"kind": "stopped", "step": progress.step, "why": stopped})
    write_text(path / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def _wait_for_a_new_second(path: Path) -> None:
    """TensorBoard reads the files of a run in the order of the seconds in their names, and of equal ones in any."""
    seconds = [file.name.split(".")[3] for file in path.glob(PATTERN)]
    if str(int(time.time())) in seconds:
        time.sleep(1)


def place(given: str | Path) -> Path:
    """The folder of a new run, as somebody named it.

    Raises:
        UserError: it cannot be a path, or is the root of a disk or the home folder.
    """
    path = user_path(given, "out")
    refuse_system_folder(path, "out")
    return path


def take(path: Path, *, new: bool) -> FolderLock:
    """Take the lock of a run folder, to write a run into it.

    Args:
        path: of the folder; that of a new run is made.
        new: the folder must not hold a run; otherwise it must.

    Raises:
        UserError: the folder cannot be written, another process writes to it, it holds another run, or a link lies
            where a file of the run is to be.
    """
    if new:
        create(path)
    lock = FolderLock(path)
    try:
        if new:
            refuse_a_run(path)
        refuse_links(path)
    except UserError:
        lock.release()
        raise
    return lock


def create(path: Path) -> None:
    """Make the folder of a new run.

    Raises:
        UserError: it cannot be written, or holds another run.
    """
    refuse_system_folder(path, "out")
    try:
        refuse_a_run(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"out: {path} is a file, allowed: a folder, or nothing there")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, UserError):
            raise
        raise UserError(f"out: {path} cannot be written ({getattr(error, 'strerror', None) or error})") from error


def refuse_a_run(path: Path) -> None:
    """Raise UserError if the folder holds a run."""
    if (path / CONFIG).exists() or (path / METRICS).exists():
        raise UserError(f"out: {path} holds another run. Choose another folder, or go on with --resume {path}")


def refuse_links(path: Path) -> None:
    """Refuse to write a run through links, which somebody else may have put into the folder.

    Raises:
        UserError: where a file or folder of a run is to be, a link, a device or a pipe lies.
    """
    for name in (CONFIG, METRICS, RESULT):
        refuse_to_replace(path / name)
    for name in (LAST, BEST, PLOTS):
        refuse_to_replace(path / name, folder=True)


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run.

    Raises:
        UserError: the folder is no run.
    """
    try:
        values = read_yaml(path / CONFIG)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a UserError
        raise UserError(f"run: {path} is no run folder: no readable {CONFIG} in it ({_why(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"run: {path / CONFIG} is damaged: it holds no sections (data, net, rule, ...)")
    return values


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_result(path: Path) -> dict[str, Any] | None:
    """result.json of a run, or None if it is not over.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return saved.read_result(path / RESULT)
    except FileNotFoundError:
        return None
