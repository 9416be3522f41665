"""A logger to Weights & Biases, https://wandb.ai."""

from collections.abc import Sequence
from typing import Any, Literal

from bpfree.spec.extras import library
from bpfree.trackers.logger import Logger, Point, Status, flat, result_by_name, run_name_of
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer


class WandB(Logger):
    """Logs config, epochs, measurements and result to Weights & Biases. It needs `pip install 'bpfree[wandb]'`.

    The result is in the summary of the run. Charts have the training step as their x axis.

    Args:
        project: name of the project.
        entity: user or team; default: that of the login.
        mode: "online", or "offline" to write files that `wandb sync` sends later. Default: the variable WANDB_MODE,
            else online.
        run_name: name of the run. Default: rule and data set.
    """

    name = "wandb"

    def __init__(
        self,
        *,
        project: str = "bpfree",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        run_name: str | None = None,
    ) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.run_name = run_name
        self._wandb = library("wandb", "wandb", "trackers")
        self._run: Any = None  # until `open`

    def open(self, trainer: Trainer, config: Record, run_id: str | None) -> str:
        """Begin a run of Weights & Biases, or go on with it, and log the config."""
        self._run = self._wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=self.run_name or run_name_of(trainer, config),
            config=config,
            id=run_id,
            resume=None if run_id is None else "allow",
            reinit="create_new",  # a run that the user's program has open is not ours
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, points: Sequence[Point]) -> None:
        """Log numbers with their steps."""
        for step, values in points:
            self._run.log({**values, "step": step})

    def close(self, status: Status, result: Record | None) -> None:
        """Put the result into the summary, and end the run."""
        if result is not None:
            self._run.summary.update(flat(result_by_name(result), "/"))
        self._run.finish(exit_code=0 if status == "finished" else 1)
