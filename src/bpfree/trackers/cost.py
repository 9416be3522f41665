"""A tracker of the cost of a training: speed, CPU time, forward passes and memory."""

import time

from bpfree.memory import peak_so_far
from bpfree.trackers.base import Measure
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars


class Cost(Measure):
    """Samples per second since the last measurement, CPU seconds and queries since the start, peak memory in bytes.

    The time of evaluations, checkpoints and other trackers counts, because this is the speed of the whole run. The
    speed is left out at the first step, and memory on systems that cannot report it. A query is a forward pass of the
    minibatch through the net, as `Rule.forward_passes` counts them. Of several processes, the CPU seconds are the sum,
    and the memory is that of the first one.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "cost"

    def on_start(self, trainer: Trainer) -> None:
        """Start the clocks of the speed and of the CPU time.

        Args:
            trainer: the trainer. Its rule is bound.
        """
        self._step, self._wall = trainer.progress.step, time.perf_counter()
        # CPU seconds of the processes before a resume, minus the clock: adding the clock gives those of the whole run.
        self._cpu = trainer.progress.cpu_seconds - trainer.mesh.total(time.process_time())

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return `samples_per_second`, `cpu_seconds`, `queries` and `peak_memory_bytes`.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        values: dict[str, float] = {}
        steps, wall = trainer.progress.step - self._step, time.perf_counter()
        if steps > 0:
            values["samples_per_second"] = steps * len(batch.y) / (wall - self._wall)
        self._step, self._wall = trainer.progress.step, wall
        values["cpu_seconds"] = self._cpu + trainer.mesh.total(time.process_time())
        values["queries"] = trainer.progress.queries
        if (peak := peak_so_far(trainer.device)) is not None:
            values["peak_memory_bytes"] = peak
        return values
