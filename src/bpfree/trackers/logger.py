"""The base class of trackers that send the records of a training to another program, such as MLflow."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Literal

from bpfree.disk.plain import is_number
from bpfree.errors import DivergedError
from bpfree.trackers.base import Tracker
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

Status = Literal["finished", "interrupted", "failed"]
Point = tuple[int, dict[str, float]]
"""A step, from 1 on, and numbers by name."""

_SEND_EVERY = 10.0  # seconds between two sends within an epoch
_MOST_FAILURES = 3  # in a row; each may have waited for a network for a long time


class Logger(Tracker, ABC):
    """A tracker that sends config, records of epochs, measurements and result to another program.

    A logger that fails warns, and the training goes on. Records that were not sent are sent after a later epoch; after
    three failures in a row it does not try again. The id of the run there is part of the checkpoint, so a resumed
    training goes on in the same run. Of several processes, only the first one logs.

    A subclass defines `open`, `log` and `close`.

    Attributes:
        name: name of the logger in `bpfree.trackers.TRACKERS`.
    """

    name: ClassVar[str]
    _config: Record | None = None  # of a run; a Trainer by itself has none
    _trainer: Trainer | None = None  # while a training runs, and until its result is there
    _is_open = False
    _failures = 0  # in a row
    _next = 0.0  # when measurements are sent within an epoch
    _status: Status | None = None  # what the end of the training was, if anything was told

    @abstractmethod
    def open(self, trainer: Trainer, config: Record, run_id: str | None) -> str:
        """Begin a run, or go on with one, and return its id.

        Args:
            trainer: the trainer, before the next step.
            config: the sections of the config; empty if the training has none.
            run_id: what this method returned when the training began; None if it begins now.
        """

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Send numbers to the run.

        Args:
            points: in the order of their steps.
        """

    @abstractmethod
    def close(self, status: Status, result: Record | None) -> None:
        """End the run, or leave it for a resume.

        Args:
            status: how the training ended.
            result: as result.json holds it; None if there is none.
        """

    def on_config(self, config: Record) -> None:
        """Keep the config, to log it."""
        self._config = config

    def on_start(self, trainer: Trainer) -> None:
        """Begin a run, or go on with that of a resumed training."""
        self._trainer = trainer if trainer.mesh.is_first else None
        self._is_open, self._failures, self._status = False, 0, None
        self._send()

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Send new measurements now and then."""
        if trainer.progress.tracked and time.monotonic() > self._next:
            self._send()

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Send the record of the epoch, and new measurements."""
        self._send()

    def on_interrupt(self, trainer: Trainer) -> None:
        """Send what was measured before Ctrl-C."""
        self._status = "interrupted"
        self._send()

    def on_diverged(self, trainer: Trainer, error: DivergedError) -> None:
        """Send what was measured before the training diverged."""
        self._status = "failed"
        self._send()

    def on_end(self) -> None:
        """End the run, unless its result is still to come."""
        if self._trainer is None:
            return
        progress = self._trainer.progress
        is_over = progress.stopped or progress.step >= (self._trainer.total_steps or 0)
        if self._status or not is_over or self._config is None:
            self._end(self._status or ("finished" if is_over else "failed"), None)

    def on_result(self, result: Record) -> None:
        """Send the result, and end the run."""
        if self._trainer is not None:
            self._end("finished", result)

    def _end(self, status: Status, result: Record | None) -> None:
        self._send()  # what earlier failures left
        if self._is_open:
            self._without_error(lambda: self.close(status, result))
        self._trainer, self._config, self._is_open = None, None, False

    def _send(self) -> None:
        if self._trainer is not None:
            trainer = self._trainer
            self._without_error(lambda: self._send_new(trainer))
            self._next = time.monotonic() + _SEND_EVERY

    def _send_new(self, trainer: Trainer) -> None:
        """Send the records that were not sent yet, by the counts that are part of the checkpoint."""
        progress = trainer.progress
        sent = progress.logged.get(self.name)
        if not self._is_open:
            run_id = self.open(trainer, self._config or {}, None if sent is None else sent["id"])
            self._is_open = True
            sent = progress.logged.setdefault(self.name, {"epochs": 0, "measurements": 0})
            sent["id"] = run_id
        assert sent is not None
        records = [*progress.tracked[sent["measurements"] :], *progress.history[sent["epochs"] :]]
        counts = {"measurements": len(progress.tracked), "epochs": len(progress.history)}
        if records:
            self.log([(record["step"], scalars_of(record)) for record in sorted(records, key=itemgetter("step"))])
            sent |= counts

    def _without_error(self, action: Callable[[], None]) -> None:
        """Do something that depends on another program. An error becomes a warning: a log is less than a training."""
        if self._failures == _MOST_FAILURES:
            return
        try:
            action()
        except Exception as error:
            self._failures += 1
            rest = "It tries again later" if self._failures < _MOST_FAILURES else "It does not try again"
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warnings.warn(f"trackers: {self.name} could not log ({text}). The training goes on. {rest}", stacklevel=2)
        else:
            self._failures = 0


def scalars_of(record: Record) -> dict[str, float]:
    """Return the numbers of a record by name, such as "train/loss", "lr" or "bp_cosine/fc1".

    Args:
        record: of an epoch or of a measurement. Numbers that a tracker added to it belong to them.

    Example:
        >>> scalars_of({"kind": "epoch", "epoch": 1, "step": 20, "lr": 0.1, "train": {"loss": 0.5}})
        {'lr': 0.1, 'train/loss': 0.5}
    """
    if record["kind"] == "tracker":
        return {f"{record['tracker']}/{name}": value for name, value in record["values"].items()}
    return flat({key: value for key, value in record.items() if key not in ("kind", "epoch", "step")}, "/", is_number)


def result_by_name(result: Record) -> Record:
    """Return a result as it is logged: the metrics of the test split as "test", all that no epoch has as "result".

    Args:
        result: as result.json holds it.
    """
    rest = {key: value for key, value in result.items() if key not in ("test", "train", "validation")}
    return {"test": result["test"] or {}, "result": rest}


def run_name_of(trainer: Trainer, config: Record) -> str:
    """Return a name for a run, such as "dfa on digits".

    Args:
        trainer: holds the rule.
        config: names rule and data; may be empty.
    """
    rule = config["rule"]["name"] if config else type(trainer.rule).__name__
    return f"{rule} on {config['data']['name']}" if config else str(rule)


def flat(values: Mapping[str, Any], between: str, wanted: Callable[[Any], bool] = lambda value: True) -> dict[str, Any]:
    """Return nested mappings as one, with joined names.

    Args:
        values: by name.
        between: what joins a name and the name within it.
        wanted: returns True for values to keep.

    Example:
        >>> flat({"data": {"name": "digits"}, "trackers": []}, ".")
        {'data.name': 'digits', 'trackers': []}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}{between}{inner}": v for inner, v in flat(value, between, wanted).items()}
        elif wanted(value):
            found[name] = value
    return found
