"""How far a training is, and when it has gone far enough."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bpfree.errors import UserError
from bpfree.training.listener import Record

FALLING = ("loss", "rmse", "rollout")  # metrics of which less is better


@dataclass
class EarlyStopping:
    """Stop when a validation metric has not improved for a while; the best weights are then the result.

    Args:
        metric: of the validation split; errors (FALLING) are to fall, all others are to rise. Default: accuracy where
            the task has it, else loss.
        patience: epochs without improvement.
    """

    metric: str | None = None
    patience: int = 10

    def score(self, validation: dict[str, float]) -> float:
        """Higher is better.

        Raises:
            UserError: no such metric.
        """
        metric = self.metric or ("accuracy" if "accuracy" in validation else "loss")
        if metric not in validation:
            raise UserError(f"early_stopping.metric: found '{metric}', allowed: {', '.join(validation)}")
        return -validation[metric] if metric in FALLING else validation[metric]


@dataclass
class Progress:
    """How far a training is; saved with a checkpoint, so plain values only."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the scalars of the running epoch's steps
    counts: dict[str, int] = field(default_factory=dict)  # of the steps that told it
    best_score: float | None = None
    best_epoch: int = 0
    stale: int = 0  # epochs since the best
    stopped: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[Record] = field(default_factory=list)  # of epochs
    tracked: list[Record] = field(default_factory=list)  # of trackers
    tracker_cost: dict[str, dict[str, float]] = field(default_factory=dict)  # by tracker: seconds, measurements

    def add(self, name: str, value: float) -> None:
        """Add what a step told."""
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Of the running epoch, so far."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the wall and CPU seconds of the block, unless it raises."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def compare_with_best(self, record: Record, early_stopping: EarlyStopping | None) -> None:
        """Note whether this epoch is the best so far, and whether to stop.

        Args:
            record: of the epoch.
            early_stopping: None to go on in any case.
        """
        if "validation" in record:
            score = (early_stopping or EarlyStopping()).score(record["validation"])
        else:
            score = -record["train"]["loss"]
        self.stale += 1
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_epoch, self.stale = score, record["epoch"], 0
        self.stopped = early_stopping is not None and self.stale >= early_stopping.patience
