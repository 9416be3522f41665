"""A logger to MLflow, https://mlflow.org."""

import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from bpfree.disk.plain import is_number
from bpfree.spec import refuse_untrusted
from bpfree.spec.extras import library
from bpfree.trackers.logger import Logger, Point, Status, flat, result_by_name, run_name_of
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100  # in one request
_LONGEST = 500  # letters of the value of a parameter, in the oldest servers


class MLflow(Logger):
    """Logs config, epochs, measurements and result to MLflow. It needs `pip install 'bpfree[mlflow]'`.

    The config becomes parameters and the file config.yaml, the result becomes metrics and the file result.json. The
    active run of `mlflow.start_run` is neither used nor changed.

    Args:
        experiment: name of the experiment; it is made if it does not exist.
        tracking_uri: where to log, such as "http://localhost:5000" or "sqlite:///mlflow.db". Default: the variable
            MLFLOW_TRACKING_URI, else MLflow's own default.
        run_name: name of the run. Default: rule and data set.
    """

    name = "mlflow"

    def __init__(
        self, *, experiment: str = "bpfree", tracking_uri: str | None = None, run_name: str | None = None
    ) -> None:
        if tracking_uri is not None:
            refuse_untrusted("trackers", f"logs to {tracking_uri}")
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.run_name = run_name
        self._mlflow = library("mlflow", "mlflow", "trackers")
        self._client: Any = None  # until `open`
        self._id = ""

    def open(self, trainer: Trainer, config: Record, run_id: str | None) -> str:
        """Begin an MLflow run, or go on with it, and log the config."""
        self._client = self._mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = self.run_name or run_name_of(trainer, config)
            run_id = self._client.create_run(self._experiment_id(), run_name=name).info.run_id
            texts = {key: str(value)[:_LONGEST] for key, value in flat(config, ".").items()}
            parameters = iter([self._mlflow.entities.Param(_key(key), text) for key, text in texts.items()])
            for part in _parts(parameters, _MOST_PARAMETERS):
                self._client.log_batch(run_id, params=part)
            self._client.log_dict(run_id, config, "config.yaml")
        self._id = str(run_id)
        return self._id

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        return str(self._client.create_experiment(self.experiment) if found is None else found.experiment_id)

    def log(self, points: Sequence[Point]) -> None:
        """Log metrics at their steps."""
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        metrics = (metric(_key(name), value, now, step) for step, values in points for name, value in values.items())
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def close(self, status: Status, result: Record | None) -> None:
        """Log the result, and end the MLflow run."""
        if result is not None and self._trainer is not None:
            self.log([(self._trainer.progress.step, flat(result_by_name(result), "/", is_number))])
            self._client.log_dict(self._id, result, "result.json")
        self._client.set_terminated(self._id, _STATUS[status])


def _key(name: str) -> str:
    """Return a name that MLflow allows."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def _parts(values: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the values in lists of at most a size."""
    while part := list(islice(values, size)):
        yield part
