"""What is to be searched, how, and where it is kept: all that a worker has to know."""

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
_DRAWS = 100  # of the space, to see whether anything in it can be a config
_METRICS = {  # of the validation split; the first is the default
    "classify": ("accuracy", "loss", *BY_CLASS),
    "multilabel": ("accuracy", "loss", "micro_f1", "macro_f1"),
    "segment": ("accuracy", "loss", "mean_iou"),
    "reconstruct": ("loss",),
    "regress": ("loss", "rmse", "r2"),
    "sequence": ("loss", "rollout", "valid_time"),
}
_ANYWHERE = (("data", "dir"), ("train", "device"))  # may differ from machine to machine


class TuneConfig(BaseModel):
    """The section `tune` of a config.

    Attributes:
        trials: how many are to be finished, by all workers together; None is 30, and all combinations of a grid.
        metric: `validation/<name>` or `train/<name>` of an epoch's record; a bare name is of the validation split. None
            is validation accuracy, or loss where there is no accuracy.
        direction: of the metric; None minimises losses and maximises all else.
        sampler: who chooses; a grid goes through all combinations.
        pruner: who stops a trial that does badly. None is stopped by default: after a few epochs rules and learning
            rates that start slowly look worse than they end, and it is those that are to be compared.
        repeats: trainings of a trial, with seeds train.seed, train.seed + 1, ...; its value is their mean.
        seed: of the sampler.
        timeout: seconds after which a worker begins no further trial.
        storage: URL of a database that Optuna takes; None is study.db in the folder.
        study: its name in the database; None is the name of the folder.
        grace: seconds without a sign of life after which a trial's worker counts as dead.
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
    """What a trial is judged by: a metric of one split, after the epoch whose weights are the result."""

    split: str
    name: str
    direction: Literal["minimize", "maximize"]

    def __str__(self) -> str:
        return f"{self.split}/{self.name}"

    def read(self, record: Record) -> float:
        """The metric in the record of an epoch.

        Raises:
            UserError: it is not there.
            DivergedError: it is no finite number.
        """
        found = record.get(self.split, {})
        if self.name not in found:
            known = ", ".join(f"{split}/{name}" for split in ("validation", "train") for name in record.get(split, {}))
            raise UserError(f"tune.metric: found '{self}', allowed: {known}")
        if not isfinite(found[self.name]):
            raise DivergedError(f"{self} became {found[self.name]} in epoch {record['epoch']}")
        return float(found[self.name])

    def better(self, a: float, b: float) -> bool:
        """Whether a is better than b."""
        return a < b if self.direction == "minimize" else a > b


class Plan(BaseModel):
    """A search. Workers get it as JSON.

    Attributes:
        values: of the config, with markers, without its section `tune`.
        settings: that section.
        out: the folder.
        storage: URL of the database.
        study: the study's name in it.
        data_dir: where data sets are, on this machine; None is where the config says.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    values: dict[str, Any]
    settings: TuneConfig
    out: Path
    storage: str
    study: str
    data_dir: str | None = None

    @cached_property
    def objective(self) -> Metric:
        """What trials are judged by."""
        return _objective(self.values, self.settings)

    @cached_property
    def markers(self) -> dict[str, Marker]:
        """By the names of the parameters."""
        return dict(find_markers(self.values))

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """All combinations; empty unless the sampler is a grid."""
        return grid(self.values) if self.settings.sampler == "grid" else []

    @property
    def trials(self) -> int:
        """How many are to be finished."""
        asked = self.settings.trials or len(self.grid) or TRIALS
        return min(asked, len(self.grid)) if self.grid else asked

    def config(self, choose: Choose) -> Config:
        """The config with what is chosen.

        Raises:
            UserError: what is chosen cannot go together.
        """
        config = parse(resolve(self.values, choose), "trial")
        if self.data_dir is not None:
            config.data.dir = self.data_dir
        return config

    def config_of(self, params: Mapping[str, Any]) -> Config:
        """The config of a trial with these parameters."""
        return self.config(lambda name, _: params[name])

    def described(self) -> dict[str, Any]:
        """What must stay the same for two searches to be one, in plain values."""
        sections = {}
        for section, values in self.values.items():
            inner = values if isinstance(values, dict) else {"name": values}
            sections[section] = {k: v for k, v in inner.items() if (section, k) not in _ANYWHERE}
        kept = self.settings.model_dump(include={"sampler", "pruner", "repeats", "seed"})
        tune = {**kept, "metric": str(self.objective), "direction": self.objective.direction}
        return {**sections, "tune": tune}

    def template(self) -> dict[str, Any]:
        """The config as it was given, to be run again; without the database, whose URL may hold a password."""
        return {**self.values, "tune": self.settings.model_dump(exclude_defaults=True, exclude={"storage"})}


def make_plan(
    config: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    data_dir: str | Path | None = None,
) -> Plan:
    """A plan, checked as far as can be told before anything is trained.

    Raises:
        UserError: a marker or a setting does not hold, nothing is left open, or no combination can be a config.
    """
    values, where = load_values(config, overrides) if isinstance(config, str) else (_overridden(config, overrides), "")
    values = {section: plain_values(value, section) for section, value in values.items()}
    if not isinstance(section := values.pop("tune", None) or {}, dict):
        raise UserError(f"tune: found {section!r}, allowed: {', '.join(TuneConfig.model_fields)}")
    settings = validated(TuneConfig, section, "tune")
    folder = _default_folder(values) if out is None else folder_of(out)
    url = storage or settings.storage or f"sqlite:///{folder.resolve() / 'study.db'}"
    study = settings.study or folder.resolve().name
    place = None if data_dir is None else str(user_path(data_dir, "data_dir").resolve())
    plan = Plan(values=values, settings=settings, out=folder, storage=url, study=study, data_dir=place)
    if not plan.markers:
        raise UserError(
            f"{where or 'config'}: leaves nothing open, allowed: one or more markers such as "
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
    return {"name": section} if isinstance(section, str) else {}  # what else it may be is refused later


def _default_folder(values: Mapping[str, Any]) -> Path:
    """Always the same for a config, so that the same command goes on."""
    names = []
    for section, default, several in (("data", "digits", "data"), ("rule", "dfa", "rules")):
        spec = values.get(section) or {}
        name = several if is_marker(spec) else _spec(spec).get("name", default)
        names.append(several if is_marker(name) else str(name).rpartition(":")[2])
    return Path("runs") / "-".join(["tune", *names])


def _objective(values: Mapping[str, Any], settings: TuneConfig) -> Metric:
    metric = settings.metric
    if metric is None:
        task = values.get("task") or "classify"
        name = task if is_marker(task) else _spec(task).get("name")
        if not isinstance(name, str) or name not in _METRICS:
            raise UserError("tune.metric: missing, and the task is searched too. Say which, such as validation/loss")
        metric = _METRICS[name][0]
    split, found, name = metric.partition("/")
    if split not in ("validation", "train"):
        split, name = "validation", metric
    elif not found or not name:
        raise UserError(f"tune.metric: found '{metric}', allowed: such as validation/accuracy, validation/loss")
    falls = name.startswith("loss") or name in FALLING
    return Metric(split, name, settings.direction or ("minimize" if falls else "maximize"))


def _refuse_what_cannot_work(plan: Plan) -> None:
    """Now and not after the first trial."""
    reasons = []
    for seed in range(_DRAWS):
        try:
            check(plan.config(at_random(seed)), plan.objective)
            break
        except UserError as error:
            reasons.append(str(error))
    else:
        several = len(set(reasons)) > 1
        raise UserError(("no combination can be trained. One of the reasons: " if several else "") + reasons[0])
    assert plan.trials  # a grid that is infinite says so


def check(config: Config, objective: Metric) -> None:
    """Raise UserError if a trial of this config could have no value."""
    known = [f"validation/{name}" for name in _METRICS[config.task["name"]]]
    if objective.split == "validation" and str(objective) not in known:
        raise UserError(f"tune.metric: found '{objective}', allowed: {', '.join(known)}, or train/ and a name there")
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
