"""A trial: a config with a value for each marker, trained like any other config and judged by a metric."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import torch

from bpfree.data import Dataset
from bpfree.disk.atomic import make_folder, write_text
from bpfree.errors import DivergedError, UserError
from bpfree.lab.tune.plan import Metric, Plan, check
from bpfree.lab.tune.store import KIND, REASON, REFUSED
from bpfree.runs import folder
from bpfree.runs.config import Config
from bpfree.runs.data_config import DataConfig
from bpfree.runs.markers import Choice, Choose, Integer, Linear, Marker
from bpfree.runs.train import train
from bpfree.trackers import Record, Tracker
from bpfree.training.trainer import Trainer

_NOT_READ = set(DataConfig.model_fields) - {"name", "dir"}  # options that act on the data after reading
TRIALS = "trials"  # the folder of the trials that ran on this machine
Report = Callable[[int, float], None]
"""A function that takes an epoch and its metric. It raises TrialPruned if the trial is stopped."""


def run_trial(trial: optuna.Trial, plan: Plan) -> float:
    """Choose values, train, and return the mean metric over the seeds.

    Values by seed, seconds, and the reason if the trial was stopped are kept in attributes of the trial.

    Args:
        trial: a trial that Optuna has just begun.
        plan: the plan of the search.

    Raises:
        TrialPruned: the values exclude each other, the training diverged, or the pruner stopped it. An attribute says
            which.
    """
    begun = time.perf_counter()
    trial.set_user_attr("threads", torch.get_num_threads())
    try:
        config = plan.config(_suggest(trial))
        check(config, plan.objective)
        values = [_train(config, number, trial, plan) for number in range(plan.settings.repeats)]
    # Pruned and not failed: the sampler learns from pruned trials, and then avoids such values.
    except (DivergedError, UserError) as error:
        trial.set_user_attr(KIND, "diverged" if isinstance(error, DivergedError) else REFUSED)
        trial.set_user_attr(REASON, str(error))
        raise optuna.TrialPruned(str(error)) from error
    finally:
        trial.set_user_attr("seconds", round(time.perf_counter() - begun, 3))
    trial.set_user_attr("values", values)
    return sum(values) / len(values)


def _suggest(trial: optuna.Trial) -> Choose:
    """Return a function that chooses values by the study's sampler."""

    def choose(name: str, marker: Marker) -> Any:
        if isinstance(marker, Choice):
            return trial.suggest_categorical(name, marker.labels)
        if isinstance(marker, Integer):
            return trial.suggest_int(name, marker.low, marker.all()[-1], step=marker.step)
        if isinstance(marker, Linear):
            high = marker.all()[-1] if marker.step else marker.high  # Optuna warns if the last step is not `high`
            return trial.suggest_float(name, marker.low, high, step=marker.step)
        return trial.suggest_float(name, marker.low, marker.high, log=True)

    return choose


def _train(config: Config, number: int, trial: optuna.Trial, plan: Plan) -> float:
    """Train once, and return the metric of the epoch whose weights are the result.

    Only the first training of a trial may be pruned: a pruner compares trials by epoch, and every epoch has one report.
    """
    # A copy for each seed: in a shared config the additions below would pile up, to the seeds 0, 1, 3, ...
    config = config.model_copy(deep=True)
    config.train.seed += number
    place = plan.out / TRIALS / f"{trial.number:04}"
    if plan.settings.repeats > 1:
        place = place / f"seed-{config.train.seed}"
    make_folder(place)
    write_text(place / folder.CONFIG, config.dump())
    data = without_test(config.data)
    watch = _Watch(place, plan.objective, _pruning(trial) if number == 0 else lambda _epoch, _value: None)
    run = train(config, dataset=data, trackers=[watch], verbose=False)  # the search shows its own progress
    write_text(place / folder.RESULT, json.dumps(run.result, indent=1) + "\n")
    progress = run.progress
    epoch = progress.best_epoch if run.weights == "best" else len(progress.history)
    return plan.objective.read(progress.history[epoch - 1])


def without_test(data: DataConfig) -> Dataset:
    """Return the data set without its test split, so that no search can choose values by it.

    Args:
        data: the section `data` of a config.
    """
    # Text, because a cache needs arguments with a hash, which a section of a config does not have.
    return replace(_read(data.model_dump_json(exclude=_NOT_READ)), test=None)


@cache
def _read(described: str) -> Dataset:
    """Return the data set, read once for all trials that differ in something else."""
    return DataConfig.model_validate_json(described).load()


def _pruning(trial: optuna.Trial) -> Report:
    def report(epoch: int, value: float) -> None:
        trial.report(value, epoch)
        if trial.should_prune():
            trial.set_user_attr(KIND, "pruned")
            trial.set_user_attr(REASON, f"stopped by the pruner after epoch {epoch}")
            raise optuna.TrialPruned

    return report


class _Watch(Tracker):
    """A tracker that writes the epochs of a trial to its folder and reports each of them."""

    def __init__(self, place: Path, objective: Metric, report: Report) -> None:
        self.place = place
        self.objective = objective
        self.report = report

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Write the epoch to metrics.jsonl and report it to the study."""
        folder.write_metrics(self.place, trainer.progress)
        self.report(record["epoch"], self.objective.read(record))
