"""The progress of a training, and early stopping."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bpfree.errors import UserError
from bpfree.training.energy import EnergyMeter, Source
from bpfree.training.listener import Record

FALLING = ("loss", "rmse", "rollout", "perplexity", "bits_per_token", "bits_per_byte")  # of which less is better


@dataclass
class EarlyStopping:
    """Stops a training when a validation metric has not improved for a while; the best weights are then the result.

    Args:
        metric: a metric of the validation split. The metrics in FALLING are better when they are lower, all others when
            they are higher. Default: accuracy if the task has it, else loss.
        patience: number of epochs without improvement.
    """

    metric: str | None = None
    patience: int = 10

    def score(self, validation: dict[str, float]) -> float:
        """Return a number that is higher for better epochs.

        Args:
            validation: the metrics of the validation split.

        Raises:
            UserError: the metric is not among them.
        """
        metric = self.metric or ("accuracy" if "accuracy" in validation else "loss")
        if metric not in validation:
            raise UserError(f"early_stopping.metric: found '{metric}', allowed: {', '.join(validation)}")
        return -validation[metric] if metric in FALLING else validation[metric]


@dataclass
class Progress:
    """The counters and records of a training. A checkpoint contains them, so they are plain values.

    Attributes:
        step: number of steps taken.
        sums: sum of each scalar over the steps of the running epoch.
        counts: number of steps of the running epoch that returned the scalar.
        best_score: score of the best epoch so far; see `EarlyStopping.score`.
        best_epoch: number of that epoch; the first is 1.
        stale: epochs since the best.
        stopped: True after early stopping, or after `Trainer.stop`.
        why_stopped: the reason, such as "no better accuracy for 10 epochs"; "" if nothing stopped the training.
        queries: forward passes of the minibatch through the net so far; see `Rule.forward_passes`.
        wall_seconds: seconds of training so far, over all processes that continued it one after the other.
        cpu_seconds: CPU seconds likewise, and of all processes that train together.
        energy_joules: energy likewise, see `bpfree.training.energy`; None if a part of it was not measured.
        energy_source: where the energy was measured.
        history: a record of each epoch.
        tracked: records of the trackers' measurements.
        tracker_cost: by tracker, the `seconds` it took and the number of `measurements`.
        logged: by logger, the `id` of its run, and how many `epochs` and `measurements` it has got.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int = 0
    stale: int = 0
    stopped: bool = False
    why_stopped: str = ""
    queries: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    energy_joules: float | None = None
    energy_source: Source | None = None
    history: list[Record] = field(default_factory=list)
    tracked: list[Record] = field(default_factory=list)
    tracker_cost: dict[str, dict[str, float]] = field(default_factory=dict)
    logged: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Add a scalar of one step to the sums of the running epoch.

        Args:
            name: the name of the scalar.
            value: its value.
        """
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the steps of the running epoch."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @contextmanager
    def timed(self, meter: EnergyMeter | None = None) -> Iterator[None]:
        """Add the wall and CPU seconds and the energy of the block, unless it raises.

        Args:
            meter: measures the energy; None if nothing on the machine can.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        if meter is not None:
            meter.start()
        yield
        self._add_energy(meter)  # before the seconds, by which it knows the first block
        self.wall_seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def _add_energy(self, meter: EnergyMeter | None) -> None:
        joules = None if meter is None else meter.stop()
        source = None if joules is None or meter is None else meter.source
        is_first = self.wall_seconds == 0
        if source is not None and joules is not None and (is_first or source == self.energy_source):
            self.energy_joules, self.energy_source = (self.energy_joules or 0.0) + joules, source
        else:  # another machine, perhaps, continued the training: its share is unknown, or of another kind
            self.energy_joules, self.energy_source = None, None

    def compare_with_best(self, record: Record, early_stopping: EarlyStopping | None) -> None:
        """Note if this epoch is the best so far, and if the training stops.

        Args:
            record: the record of the epoch.
            early_stopping: None to continue in any case. The best epoch is then the one with the best validation
                accuracy or loss; without a validation split, with the lowest training loss.
        """
        if "validation" in record:
            score = (early_stopping or EarlyStopping()).score(record["validation"])
        else:
            score = -record["train"]["loss"]
        self.stale += 1
        # Strictly above: an equal score is not an improvement, so a training that stands still stops.
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_epoch, self.stale = score, record["epoch"], 0
        if early_stopping is not None and self.stale >= early_stopping.patience:
            self.stop(f"early stopping: no better epoch for {self.stale} epoch{'s' * (self.stale != 1)}")

    def stop(self, why: str) -> None:
        """Note that the training stops, and why. The first reason stays.

        Args:
            why: the reason.
        """
        self.why_stopped = self.why_stopped if self.stopped else why
        self.stopped = True
