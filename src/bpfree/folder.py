"""The folder of a run: config.yaml, metrics.jsonl, result.json, last.ckpt, best.ckpt, events for TensorBoard, plots."""

import json
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bpfree import checkpoint
from bpfree.errors import DivergedError, UserError
from bpfree.state import Progress
from bpfree.trackers import Record, Tracker
from bpfree.trainer import Trainer
from bpfree.types import Batch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, METRICS, RESULT, LAST, BEST = "config.yaml", "metrics.jsonl", "result.json", "last.ckpt", "best.ckpt"
PLOTS = "plots"


class RunFolder(Tracker):
    """Writes a training to a folder as it goes. A killed process leaves whole files and a checkpoint to resume from.

    Args:
        path: of the folder.
        config_text: of config.yaml for a new run; None if the run is resumed.
        extra: plain values that a checkpoint keeps for loading, such as the preprocessing.
    """

    def __init__(self, path: Path, config_text: str | None, extra: dict[str, Any]) -> None:
        self.path = path
        self.config_text = config_text
        self.extra = extra
        self._events: SummaryWriter | None = None
        self._sent = 0  # of the trackers' records

    def on_start(self, trainer: Trainer) -> None:
        """A checkpoint before the first step, so that whatever happens can be resumed.

        config.yaml comes after it: a folder with a config is a run with a checkpoint, whenever a process was killed.
        """
        from torch.utils.tensorboard import SummaryWriter  # only runs with a folder write events

        progress = trainer.progress
        if self.config_text is not None:
            create(self.path)
        checkpoint.save(trainer, self.path / LAST, self.extra)
        if self.config_text is not None:
            checkpoint.write_text(self.path / CONFIG, self.config_text)
        checkpoint.clean(self.path, (CONFIG, METRICS, RESULT, LAST, BEST))
        checkpoint.clean(self.path / PLOTS, ("*.png", "*.gif"))
        write_metrics(self.path, progress)
        self._sent = len(progress.tracked)
        _wait_for_a_new_second(self.path)
        self._events = SummaryWriter(str(self.path), purge_step=progress.step + 1)

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Events of what trackers measured in this step."""
        assert self._events is not None
        for record in trainer.progress.tracked[self._sent :]:
            for name, value in record["values"].items():
                self._events.add_scalar(f"{record['tracker']}/{name}", value, record["step"])
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
        checkpoint.write_text(self.path / RESULT, json.dumps(result, indent=1) + "\n")

    def on_end(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write_events(self, record: Record) -> None:
        assert self._events is not None
        scalars = {"lr": record["lr"], "samples_per_second": record["samples_per_second"]}
        for split in ("train", "validation"):
            scalars |= {f"{split}/{name}": value for name, value in record.get(split, {}).items()}
        for name, value in scalars.items():
            self._events.add_scalar(name, value, record["step"])
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
    checkpoint.write_text(path / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def _wait_for_a_new_second(path: Path) -> None:
    """TensorBoard reads the files of a run in the order of the seconds in their names, and of equal ones in any."""
    seconds = [int(file.name.split(".")[3]) for file in path.glob("events.out.tfevents.*")]
    if int(time.time()) in seconds:
        time.sleep(1)


def create(path: Path) -> None:
    """Make the folder of a new run.

    Raises:
        UserError: it cannot be written, or holds another run.
    """
    if (path / CONFIG).exists() or (path / METRICS).exists():
        raise UserError(f"out: {path} holds another run. Choose another folder, or go on with --resume {path}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"out: {path} cannot be written ({error.strerror or error})") from error


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run.

    Raises:
        UserError: the folder is no run.
    """
    try:
        values = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"run: {path} is no run folder: no readable {CONFIG} in it") from error
    if not isinstance(values, dict):
        raise UserError(f"run: {path / CONFIG} is damaged")
    return values


def read_result(path: Path) -> dict[str, Any] | None:
    """result.json of a run, or None if it is not over.

    Raises:
        UserError: the file is damaged.
    """
    try:
        result = json.loads((path / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / RESULT}: damaged ({error})") from error
    if not isinstance(result, dict) or not {"test", "weights", "rule", "dataset", "wall_seconds"} <= result.keys():
        raise UserError(f"{path / RESULT}: damaged: it holds no result. Delete it and go on with --resume")
    return result
