"""The plan of a search: the config with its markers, the settings, the folder and the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bpfree.disk.paths import user_path
from bpfree.errors import DivergedError, UserError
from bpfree.runs.config import Config, parse, plain_values
from bpfree.runs.config_file import apply_override, load_values
from bpfree.runs.folder import place as folder_of
from bpfree.runs.markers import Choose, Marker, at_random, find_markers, grid, is_marker, resolve, validated
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import Record
from bpfree.training.progress import FALLING

TRIALS = 30
_DRAWS = 100  # random configs of the space; if none of them is valid, the search is refused
_METRICS = {  # of the validation split, by task; the first is the default
    "classify": ("accuracy", "loss", *BY_CLASS),
    "multilabel": ("accuracy", "loss", "micro_f1", "macro_f1"),
    "segment": ("accuracy", "loss", "mean_iou"),
    "reconstruct": ("loss",),
    "regress": ("loss", "rmse", "r2"),
    "sequence": ("loss", "rollout", "valid_time"),
    "language": ("loss", "accuracy", "perplexity", "bits_per_token", "bits_per_byte"),
}
_OF_THE_MACHINE = (("data", "dir"), ("train", "device"))  # may differ between workers


class TuneConfig(BaseModel):
    """The section `tune` of a config.

    Attributes:
        trials: number of trials to finish, by all workers together. None: 30, or all combinations of a grid.
        metric: `validation/<name>` or `train/<name>` of an epoch's record; a name alone belongs to the validation
            split. None: validation accuracy, or validation loss for tasks without accuracy.
        direction: "minimize" or "maximize" the metric. None: minimise losses, maximise everything else.
        sampler: the method that chooses values; "grid" goes through all combinations.
        pruner: the method that stops a bad trial early. Default: none, because rules and learning rates that start
            slowly look worse after a few epochs than they end, and a search usually compares those.
        repeats: trainings of a trial, with seeds train.seed, train.seed + 1, ...; its value is their mean.
        seed: seed of the sampler.
        timeout: seconds after which a worker does not begin another trial.
        storage: URL of a database that Optuna supports. None: study.db in the folder.
        study: name of the study in the database. None: the name of the folder.
        grace: seconds without a heartbeat after which a trial's worker counts as dead.
    """

    model_config = ConfigDict(extra="forbid")

    trials: int | None = Field(default=None, ge=1)
    metric: str | None = None
    direction: Literal["minimize", "maximize"] | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["none", "halving", "hyperband", "median"] = "none"
    repeats: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    timeout: float | None = Field(default=None, gt=0)
    storage: str | None = None
    study: str | None = None
    grace: float = Field(default=20.0, ge=1)


@dataclass(frozen=True)
class Metric:
    """The metric that trials are judged by, after the epoch whose weights are the result.

    Attributes:
        split: "validation" or "train".
        name: the metric's name in an epoch's record, such as accuracy or loss.
        direction: the direction that is better.
    """

    split: str
    name: str
    direction: Literal["minimize", "maximize"]

    def __str__(self) -> str:
        return f"{self.split}/{self.name}"

    def read(self, record: Record) -> float:
        """Return the metric in the record of an epoch.

        Args:
            record: the record of an epoch, with a dict for each split.

        Raises:
            UserError: the record does not have the metric.
            DivergedError: the metric is not a finite number.
        """
        metrics = record.get(self.split, {})
        if self.name not in metrics:
            names = (f"{split}/{name}" for split in ("validation", "train") for name in record.get(split, {}))
            raise UserError(f"tune.metric: found '{self}', allowed: {', '.join(names)}")
        if not isfinite(metrics[self.name]):
            raise DivergedError(f"{self} became {metrics[self.name]} in epoch {record['epoch']}")
        return float(metrics[self.name])

    def better(self, a: float, b: float) -> bool:
        """Return True if the value a is better than the value b."""
        return a < b if self.direction == "minimize" else a > b


class Plan(BaseModel):
    """Everything that a worker has to know about a search; workers get it as JSON.

    Attributes:
        values: the config with its markers, without the section `tune`.
        settings: the section `tune`.
        out: the folder of the study.
        storage: URL of the database.
        study: name of the study in the database.
        data_dir: folder of the data sets on this machine. None: the folder that the config names.
    """

    # By default pydantic writes infinity as null, and a worker would read None.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    values: dict[str, Any]
    settings: TuneConfig
    out: Path
    storage: str
    study: str
    data_dir: str | None = None

    @cached_property
    def objective(self) -> Metric:
        """The metric that trials are judged by."""
        return _objective(self.values, self.settings)

    @cached_property
    def markers(self) -> dict[str, Marker]:
        """The markers by the names of the parameters."""
        return dict(find_markers(self.values))

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """The parameters of each combination; empty unless the sampler is a grid."""
        return grid(self.values) if self.settings.sampler == "grid" else []

    @property
    def trials(self) -> int:
        """The number of trials to finish, by all workers together."""
        wanted = self.settings.trials or len(self.grid) or TRIALS
        return min(wanted, len(self.grid)) if self.grid else wanted

    def config(self, choose: Choose) -> Config:
        """Return the config with a value in place of each marker.

        Args:
            choose: the function that chooses a value for each marker.

        Raises:
            UserError: the chosen values exclude each other.
        """
        config = parse(resolve(self.values, choose), "trial")
        if self.data_dir is not None:
            config.data.dir = self.data_dir
        return config

    def config_of(self, params: Mapping[str, Any]) -> Config:
        """Return the config of a trial, from the trial's parameters."""
        return self.config(lambda name, _: params[name])

    def described(self) -> dict[str, Any]:
        """Return the values that two searches must share to be the same search.

        Workers compare them before they join a study. Folders, devices and the number of trials may differ.
        """
        sections = {}
        for section, values in self.values.items():
            # `rule: dfa` and `rule: {name: dfa}` describe the same search.
            inner = values if isinstance(values, dict) else {"name": values}
            sections[section] = {k: v for k, v in inner.items() if (section, k) not in _OF_THE_MACHINE}
        kept = self.settings.model_dump(include={"sampler", "pruner", "repeats", "seed"})
        tune = {**kept, "metric": str(self.objective), "direction": self.objective.direction}
        return {**sections, "tune": tune}

    def template(self) -> dict[str, Any]:
        """Return the config as the user gave it; without the database, whose URL may contain a password."""
        return {**self.values, "tune": self.settings.model_dump(exclude_defaults=True, exclude={"storage"})}


def make_plan(
    config: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    data_dir: str | Path | None = None,
) -> Plan:
    """Return a plan, checked as far as possible before anything is trained.

    Args:
        config: a YAML file, the name of a shipped config, or plain values, with markers and perhaps a section `tune`.
        overrides: changes of the config, each `section.key=value`.
        out: folder of the study. Default: runs/tune-<dataset>-<rule>.
        storage: URL of a database that Optuna supports. Default: `tune.storage`, else SQLite in the folder.
        data_dir: folder of the data sets. Default: the one that the config names.

    Raises:
        UserError: a marker or a setting is invalid, the config has no marker, or no combination is a valid config.
    """
    values, where = load_values(config, overrides) if isinstance(config, str) else (_overridden(config, overrides), "")
    values = {section: plain_values(value, section) for section, value in values.items()}
    # In YAML, a section without keys is None.
    if not isinstance(section := values.pop("tune", None) or {}, dict):
        raise UserError(f"tune: found {section!r}, allowed: {', '.join(TuneConfig.model_fields)}")
    settings = validated(TuneConfig, section, "tune")
    folder = _default_folder(values) if out is None else folder_of(out)
    # An absolute path: from another folder, SQLite would begin a new, empty database.
    url = storage or settings.storage or f"sqlite:///{folder.resolve() / 'study.db'}"
    study = settings.study or folder.resolve().name
    place = None if data_dir is None else str(user_path(data_dir, "data_dir").resolve())
    plan = Plan(values=values, settings=settings, out=folder, storage=url, study=study, data_dir=place)
    if not plan.markers:
        raise UserError(
            f"{where or 'config'}: has no search marker, allowed: one or more, such as "
            "optimizer.lr={search: log, low: 1e-4, high: 1e-1}"
        )
    _refuse_what_cannot_work(plan)
    return plan


def _overridden(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    values = dict(config)
    for override in overrides:
        apply_override(values, override)
    return values


def _spec(section: Any) -> dict[str, Any]:
    if isinstance(section, Mapping):
        return dict(section)
    return {"name": section} if isinstance(section, str) else {}  # other types are refused later


def _default_folder(values: Mapping[str, Any]) -> Path:
    """Return the default folder: the same for each run of a command, so that the command continues its search."""
    names = []
    for section, default, several in (("data", "digits", "data"), ("rule", "dfa", "rules")):
        spec = values.get(section) or {}
        name = several if is_marker(spec) else _spec(spec).get("name", default)
        # Of "module:Class" only the class, because Windows does not allow ":" in the name of a folder.
        names.append(several if is_marker(name) else str(name).rpartition(":")[2])
    return Path("runs") / "-".join(["tune", *names])


def _objective(values: Mapping[str, Any], settings: TuneConfig) -> Metric:
    metric = settings.metric
    if metric is None:
        task = values.get("task") or "classify"
        name = task if is_marker(task) else _spec(task).get("name")
        if not isinstance(name, str) or name not in _METRICS:
            raise UserError("tune.metric: missing, and the task is searched too. Name one, such as validation/loss")
        metric = _METRICS[name][0]
    split, slash, name = metric.partition("/")
    if split not in ("validation", "train"):
        split, name = "validation", metric
    elif not slash or not name:
        raise UserError(f"tune.metric: found '{metric}', allowed: such as validation/accuracy, validation/loss")
    falls = name.startswith("loss") or name in FALLING
    return Metric(split, name, settings.direction or ("minimize" if falls else "maximize"))


def _refuse_what_cannot_work(plan: Plan) -> None:
    """Raise UserError if no trial could work: now, and not after the first trial."""
    reasons = []
    for seed in range(_DRAWS):
        try:
            check(plan.config(at_random(seed)), plan.objective)
            # Some combinations may exclude each other. One that works is enough.
            break
        except UserError as error:
            reasons.append(str(error))
    else:
        several = len(set(reasons)) > 1
        raise UserError(("no combination can be trained. One of the reasons: " if several else "") + reasons[0])
    assert plan.trials  # this makes the grid, which raises UserError if it is infinite


def check(config: Config, objective: Metric) -> None:
    """Raise UserError if a trial of this config could not have a value.

    Args:
        config: the config of a trial.
        objective: the metric that trials are judged by.
    """
    allowed = [f"validation/{name}" for name in _METRICS[config.task["name"]]]
    if objective.split == "validation" and str(objective) not in allowed:
        raise UserError(f"tune.metric: found '{objective}', allowed: {', '.join(allowed)}, or train/ and a name there")
    if objective.split == "validation" and config.data.validation == 0:
        raise UserError(
            f"tune.metric: found '{objective}', but data.validation is 0. Use 0.1, say, or a training metric such as "
            "train/loss"
        )
    if config.train.readout != "none":
        raise UserError(
            f"train.readout: found {config.train.readout}, which replaces the last layer after the last validation; "
            "allowed in a search: none. Train the best config with it"
        )
