"""The YAML door: sections, overrides, shipped configs."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from bpfree.data import DATASETS, Augment, Dataset, Preprocess, Split, data_directory
from bpfree.data.augment import PixelValues
from bpfree.data.subset import Skew, SkewKind, mislabel, select, thin
from bpfree.disk.paths import user_path
from bpfree.errors import UserError, no_soft_labels, shown, unknown
from bpfree.nets import NETS
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.markers import refuse_markers
from bpfree.spec import absolute_paths, build, check_options, lookup, move_old_keys, moved_keys, split_spec
from bpfree.tasks import TASKS, custom_options
from bpfree.tasks.abilities import check_loss, check_task
from bpfree.trackers import TRACKERS, Tracker
from bpfree.training.compute import Update
from bpfree.training.optim import OPTIMIZERS, SCHEDULES
from bpfree.training.precision import Precision
from bpfree.training.progress import EarlyStopping
from bpfree.training.ridge_readout import Readout

MACHINE_KEYS = ("data.dir", "data.path", "data.labels", "data.cache", "data.memory_limit", "train.device")
"""What may change when a run goes on: where its data lie, and what computes."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SkewConfig(_Section):
    """See `bpfree.data.subset.Skew`."""

    kind: SkewKind = "long_tailed"
    factor: float = Field(ge=1, allow_inf_nan=False)


class AugmentConfig(_Section):
    """Random changes to training samples; see `bpfree.data.augment.Augment`."""

    shift: int = Field(default=0, ge=0)
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0, le=1000)

    def build(self, preprocess: Preprocess) -> Augment:
        """Return the changes that training batches of such samples go through."""
        return Augment(**self.model_dump(), values=PixelValues.of(preprocess))


OLD_DATA_KEYS = {key: f"augment.{key}" for key in AugmentConfig.model_fields}
"""Keys of the section `data` in earlier versions, and their places now; see `bpfree.spec.move_old_keys`."""


class DataConfig(BaseModel):
    """Which data, how much of it, and how batches are made. Other keys are options of the data set's reader."""

    model_config = ConfigDict(extra="allow")

    name: str = "digits"
    dir: str | None = None
    batch_size: int = Field(default=64, ge=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    classes: list[int] | None = None
    fraction: float = Field(default=1.0, gt=0, le=1)
    skew: SkewConfig | None = None
    label_noise: float = Field(default=0.0, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        """Move the keys of earlier versions, `data.flip` and the like, into `data.augment`."""
        is_section = isinstance(values, Mapping) and isinstance(values.get("augment", {}), Mapping | AugmentConfig)
        return move_old_keys(values, OLD_DATA_KEYS, "data") if is_section else values

    @model_validator(mode="after")
    def _anywhere(self) -> "DataConfig":
        """Paths of the reader are kept absolute."""
        if self.dir is not None:
            user_path(self.dir, "data.dir")
        if self.name in DATASETS and self.model_extra:
            self.model_extra.update(absolute_paths(DATASETS[self.name], self.model_extra, "data"))
        return self

    def check(self) -> dict[str, Any]:
        """The options of the reader, converted to the types of its signature.

        Raises:
            UserError: an unknown data set or option, or one of the wrong type.
        """
        reader = DATASETS.get(self.name)
        if reader is None:
            raise unknown("dataset", self.name, DATASETS)
        options = self.model_extra or {}
        taken = {name for name, p in list(inspect.signature(reader).parameters.items())[1:] if p.kind != p.VAR_KEYWORD}
        for key in options.keys() - taken:
            raise unknown("key", key, {*type(self).model_fields, *taken}, prefix="data.")
        return check_options(reader, options, "data", given=1)

    def load(self, data_dir: str | Path | None = None) -> Dataset:
        """The data set, from the given directory or else from where the config says.

        Raises:
            UserError: it is not there and cannot be had, or is damaged.
        """
        return self.select(DATASETS[self.name](data_directory(data_dir or self.dir), **self.check()))

    def select(self, dataset: Dataset) -> Dataset:
        """Of a data set the `classes` that are asked for, in training and test."""
        return dataset if self.classes is None else select(dataset, self.classes)

    def split(self, dataset: Dataset, seed: int) -> tuple[Split, Split | None]:
        """Training and validation samples by seed; skew, fraction and label noise are of the training samples alone.

        Validation is what it would be without them, so that all runs of a seed are judged by the same samples.
        """
        train, validation = dataset.carve(self.validation, seed)
        skew = None if self.skew is None else Skew(self.skew.kind, self.skew.factor)
        train = thin(train, dataset.classes, Noise(seed).fold("subset"), fraction=self.fraction, skew=skew)
        return mislabel(train, dataset.classes, self.label_noise, Noise(seed).fold("label_noise")), validation


class EarlyStoppingConfig(_Section):
    """See `bpfree.training.progress.EarlyStopping`."""

    metric: str | None = None
    patience: int = Field(default=10, ge=1)

    def build(self) -> EarlyStopping:
        """As the trainer takes it."""
        return EarlyStopping(self.metric, self.patience)


class TrainConfig(_Section):
    """How long, on what, and from which seed."""

    epochs: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Precision = "float32"
    update: Update = "together"
    device: str = "auto"
    clip: float | None = Field(default=None, gt=0)
    early_stopping: EarlyStoppingConfig | None = None
    freeze: list[str] = []
    readout: Readout = "none"
    ridge: float = Field(default=1e-3, gt=0)


NamedSpec = dict[str, Any]
_MOVABLE: dict[str, Mapping[str, Any]] = {"net": NETS, "rule": RULES}


def old_keys(section: str, spec: Any) -> Mapping[str, str]:
    """Return the present places of the keys that earlier versions had in a section, by old key.

    Args:
        section: a section of a config, such as "data" or "net".
        spec: its values, or the name alone; in "net" and "rule" the keys depend on the constructor.
    """
    if section == "data":
        return OLD_DATA_KEYS
    return moved_keys(_MOVABLE[section], spec) if section in _MOVABLE else {}


class Config(_Section):
    """A run, complete. A section with a name is a constructor call; see `bpfree.spec`."""

    data: DataConfig = DataConfig()
    net: NamedSpec = {"name": "mlp"}
    rule: NamedSpec = {"name": "dfa"}
    task: NamedSpec = {"name": "classify"}
    optimizer: NamedSpec = {"name": "adam"}
    schedule: NamedSpec = {"name": "constant"}
    train: TrainConfig = TrainConfig()
    trackers: list[NamedSpec] = []

    @field_validator("data", "net", "rule", "task", "optimizer", "schedule", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("net", "rule", mode="after")
    @classmethod
    def _old_keys(cls, value: NamedSpec, info: ValidationInfo) -> NamedSpec:
        """Move keys of earlier versions, so that the config of a new run has the present keys only."""
        section = str(info.field_name)
        return move_old_keys(value, old_keys(section, value), section)

    @field_validator("trackers", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        specs = value if isinstance(value, list) else [value]
        return [{"name": spec} if isinstance(spec, str) else spec for spec in specs]

    def check(self) -> None:
        """Refuse unknown names and options before anything is loaded.

        Raises:
            UserError: one is unknown or of the wrong type.
        """
        self.data.check()
        _check_section("net", NETS, self.net, given=2, outside=nn.Module)
        rule = build(RULES, self.rule, section="rule", outside=Rule)
        _check_section("task", {name: task.of for name, task in TASKS.items()}, self.task, given=1)
        check_task(self.rule["name"], rule.tasks, self.task["name"])
        check_loss(self.rule["name"], rule.uses_loss, custom_options(self.task))
        self._check_moves()
        if self.data.augment.mixup and self.task["name"] == "classify" and not rule.takes_soft_labels:
            raise no_soft_labels(self.rule["name"])
        _check_section("optimizer", OPTIMIZERS, self.optimizer, given=1)
        _check_section("schedule", SCHEDULES, self.schedule, given=2)
        for spec in self.trackers:
            _check_section("tracker", TRACKERS, spec, given=0, outside=Tracker)

    def _check_moves(self) -> None:
        """Raise UserError if samples would be moved and the labels of their pixels would stay."""
        changes, default = self.data.augment, AugmentConfig()
        moving = [key for key in ("shift", "flip", "crop") if getattr(changes, key) != getattr(default, key)]
        moved = [f"data.augment.{key}" for key in moving]
        if moved and TASKS[self.task["name"]].answers == "pixels":
            raise UserError(
                f"{', '.join(moved)}: moves samples, but not the labels of their pixels, which task=segment has. "
                "Leave it out; allowed are brightness, contrast and cutout"
            )

    def plain(self) -> dict[str, Any]:
        """As plain values, complete and re-runnable."""
        return self.model_dump(mode="json")

    def dump(self) -> str:
        """As YAML."""
        return yaml.safe_dump(self.plain(), sort_keys=False)


def _check_section(
    section: str, table: Mapping[str, Any], spec: NamedSpec, given: int, outside: type | None = None
) -> None:
    name, options = split_spec(spec, section)
    check_options(lookup(table, name, section, outside), options, section, given)


def parse(values: Mapping[str, Any], where: str = "config") -> Config:
    """A config from plain values, checked. A section `tune` is for `bpfree tune` alone and left out.

    Raises:
        UserError: an unknown section, key or name, a wrong type, or a value that is left open.
    """
    refuse_markers(values, where)
    values = {section: plain_values(value, section) for section, value in values.items() if section != "tune"}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, where) from error
    config.check()
    return config


def parse_section(section: str, value: Any, where: str) -> Any:
    """A section that only describes: what it names came from Python, and nothing of it is built.

    Raises:
        UserError: it has not the form of that section.
    """
    try:
        return getattr(Config.model_validate({section: plain_values(value, section)}), section)
    except ValidationError as error:
        raise _explain(error, where) from error


def plain_values(value: Any, where: str) -> Any:
    """Convert numbers and arrays of numpy and torch to Python values, which YAML can hold.

    Raises:
        UserError: something else is in it; `where` says in which section.
    """
    if isinstance(value, Mapping):
        return {key: plain_values(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner, where) for inner in value]
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.dim() > 0):
        return value.tolist()
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"{where}: found {type(value).__name__}, allowed: plain values (numbers, text, lists, mappings)")


def _explain(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    if isinstance(own := first.get("ctx", {}).get("error"), UserError):
        return own
    path = [str(part) for part in first["loc"]]
    if isinstance(told := first.get("ctx", {}).get("error"), UserError):  # of a validator of ours
        return UserError(f"{where}: {told}")
    if first["type"] == "extra_forbidden":
        section = _model_at(path[:-1])
        return unknown("key", path[-1], section.model_fields, prefix=".".join([*path[:-1], ""]))
    if first["type"] == "missing":
        return UserError(f"{where}: {'.'.join(path)}: missing, and {(path[-2:-1] or [where])[0]} needs it")
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "model_type":
        allowed = f"a section of keys ({', '.join(_model_at(path).model_fields)})"
    return UserError(f"{where}: {'.'.join(path)}: found {shown(first['input'])}, allowed: {allowed}")


def _model_at(path: Sequence[str]) -> type[BaseModel]:
    model: type[BaseModel] = Config
    nested: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "skew": SkewConfig,
        "augment": AugmentConfig,
        "train": TrainConfig,
        "early_stopping": EarlyStoppingConfig,
    }
    for part in path:
        model = nested.get(part, model)
    return model
