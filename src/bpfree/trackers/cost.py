"""What training costs as it goes."""

import time

from bpfree.memory import peak_so_far
from bpfree.trackers.base import Measure
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars


class Cost(Measure):
    """Samples a second since the last measurement, CPU seconds since the training began, peak memory in bytes.

    Evaluation, checkpoints and other trackers count: it is the pace of the run. Where there is no step since the last
    measurement the pace is left out, and memory where the system does not tell.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "cost"

    def on_start(self, trainer: Trainer) -> None:
        """Start the clocks."""
        self._step, self._wall = trainer.progress.step, time.perf_counter()
        self._cpu = trainer.progress.cpu_seconds - time.process_time()

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """`samples_per_second`, `cpu_seconds`, `peak_memory_bytes`."""
        values: dict[str, float] = {}
        steps, wall = trainer.progress.step - self._step, time.perf_counter()
        if steps > 0:
            values["samples_per_second"] = steps * len(batch.y) / (wall - self._wall)
        self._step, self._wall = trainer.progress.step, wall
        values["cpu_seconds"] = self._cpu + time.process_time()
        if (peak := peak_so_far(trainer.device)) is not None:
            values["peak_memory_bytes"] = peak
        return values
