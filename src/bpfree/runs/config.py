"""The sections of a config, their defaults and their checks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor, nn

from bpfree.errors import UserError, no_soft_labels, shown, unknown
from bpfree.nets import NETS
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.data_config import OLD_DATA_KEYS, AugmentConfig, DataConfig, Section, SkewConfig
from bpfree.runs.markers import refuse_markers
from bpfree.spec import build, check_options, lookup, move_old_keys, moved_keys, split_spec
from bpfree.tasks import TASKS, custom_options
from bpfree.tasks.abilities import check_loss, check_task
from bpfree.trackers import TRACKERS, Tracker
from bpfree.training.compute import Update
from bpfree.training.graphs import Graph
from bpfree.training.mesh import BatchNorm, MeshName, MeshSpec
from bpfree.training.optim import OPTIMIZERS, SCHEDULES
from bpfree.training.precision import Precision, refuse_float16
from bpfree.training.progress import EarlyStopping
from bpfree.training.ridge_readout import Readout

MACHINE_KEYS = (
    "data.dir",
    "data.path",
    "data.labels",
    "data.cache",
    "data.memory_limit",
    "train.device",
    "train.graph",
    "train.mesh",
    "train.start_from",
)
"""Keys that may change when a run is resumed: they say where files are and what computes."""


class EarlyStoppingConfig(Section):
    """The section `train.early_stopping`; see `bpfree.training.progress.EarlyStopping`."""

    metric: str | None = None
    patience: int = Field(default=10, ge=1)

    def build(self) -> EarlyStopping:
        """Return the options in the form that the trainer takes."""
        return EarlyStopping(self.metric, self.patience)


class MeshConfig(Section):
    """The section `train.mesh`; see `bpfree.training.mesh.MeshSpec`."""

    name: MeshName = "auto"
    batch_norm: BatchNorm = "synchronised"
    replicas: int = Field(default=1, ge=1)

    def build(self) -> MeshSpec:
        """Return the options in the form that the trainer takes."""
        return MeshSpec(self.name, self.batch_norm, self.replicas)


class TrainConfig(Section):
    """The section `train`: how long, on what device, from which seed, and what happens in the end.

    Attributes:
        epochs: passes over the training samples.
        seed: of everything random.
        precision: number type of forward passes; see `bpfree.training.compute.Compute`.
        update: when parameters are stepped; see `bpfree.training.compute.Compute`.
        graph: whether a step on CUDA is captured and replayed; see `bpfree.training.compute.Compute`.
        deterministic: the same bits in each run on one device; see `bpfree.training.compute.Compute`.
        mesh: how the processes that torchrun started share the training; see docs/mesh.md.
        device: name of a device; "auto" takes a GPU if there is one.
        clip: largest gradient norm, for each of the rule's units by itself.
        early_stopping: when to stop before `epochs`; None: never.
        start_from: a run folder whose weights the net starts with, to fine-tune it; None for new weights.
        freeze: patterns of parameters that are not trained; see `bpfree.training.freeze`.
        readout: "ridge" replaces the last layer after training; see `bpfree.training.ridge_readout`.
        ridge: factor of the penalty of that readout.
    """

    epochs: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Precision = "float32"
    update: Update = "together"
    graph: Graph = "auto"
    deterministic: bool = False
    mesh: MeshConfig = MeshConfig()
    device: str = "auto"
    clip: float | None = Field(default=None, gt=0)
    early_stopping: EarlyStoppingConfig | None = None
    start_from: str | None = None
    freeze: list[str] = []
    readout: Readout = "none"
    ridge: float = Field(default=1e-3, gt=0)

    @field_validator("graph", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads the words on and off as true and false."""
        return ("off", "on")[value] if isinstance(value, bool) else value

    @field_validator("mesh", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("precision", mode="before")
    @classmethod
    def _no_float16(cls, value: object) -> object:
        """Raise UserError for "float16", with the reason, which a list of what is allowed does not have."""
        refuse_float16("train.precision", value)
        return value


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


class Config(Section):
    """The complete config of a run. A section with a name is a constructor call; see `bpfree.spec`.

    Attributes:
        data: the data set and how batches are made.
        net: name and options of the net.
        rule: name and options of the learning rule.
        task: name and options of the task.
        optimizer: name and options of the optimiser.
        schedule: name and options of the schedule of the learning rate.
        train: length, seed, device and the like.
        trackers: a name and options for each tracker.
    """

    # pydantic copies such a default for each config, so that two configs never share a section.
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
        """Refuse unknown names and options before any data are read.

        Raises:
            UserError: a name or option is unknown, has the wrong type, or does not fit the others.
        """
        # Each section before what depends on several, so that the error names the misspelt key and not its consequence.
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
        """Return the config as plain values, complete: `parse` makes the same config of them."""
        return self.model_dump(mode="json")

    def dump(self) -> str:
        """Return the config as the text of a YAML file."""
        # `safe_dump` refuses objects. `dump` would write them as instructions that a reader of the file could execute.
        return yaml.safe_dump(self.plain(), sort_keys=False)


def _check_section(
    section: str, table: Mapping[str, Any], spec: NamedSpec, given: int, outside: type | None = None
) -> None:
    """Raise UserError unless a section's name is in the table and its options fit the constructor.

    The first `given` arguments of the constructor come from the program, so a config cannot set them.
    """
    name, options = split_spec(spec, section)
    check_options(lookup(table, name, section, outside), options, section, given)


def parse(values: Mapping[str, Any], where: str = "config") -> Config:
    """Make a config from plain values, and check it.

    Args:
        values: the sections. A section `tune` is for `bpfree tune` alone and is left out.
        where: the values are from, for errors.

    Returns:
        The config, complete.

    Raises:
        UserError: an unknown section, key or name, a wrong type, or a search marker in place of a value.

    Example:
        >>> parse({"net": "mlp", "train": {"epochs": 3}}).train.epochs
        3
    """
    refuse_markers(values, where)
    # Before pydantic sees them: values from Python may be of numpy or torch, and config.yaml must hold them all.
    values = {section: plain_values(value, section) for section, value in values.items() if section != "tune"}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, where) from error
    config.check()
    return config


def parse_section(section: str, value: Any, where: str) -> Any:
    """Check the form of a section that only describes an object from Python. Nothing of it is built.

    Args:
        section: its name, such as "net".
        value: its plain values.
        where: the values are from, for errors.

    Returns:
        The section as `Config` holds it.

    Raises:
        UserError: the values do not have the form of that section.
    """
    try:
        return getattr(Config.model_validate({section: plain_values(value, section)}), section)
    except ValidationError as error:
        raise _explain(error, where) from error


def plain_values(value: Any, where: str) -> Any:
    """Convert numbers and arrays of numpy and torch to Python values, which YAML can hold.

    Args:
        value: any nesting of mappings, lists and values.
        where: name of the section, for errors.

    Raises:
        UserError: a value is of another kind.

    Example:
        >>> plain_values({"hidden": (np.int64(8), 4)}, "net")
        {'hidden': [8, 4]}
    """
    if isinstance(value, Mapping):
        return {key: plain_values(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner, where) for inner in value]
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.dim() > 0):
        return value.tolist()
    # Scalars after arrays: a tensor of one number with dimensions stays a list.
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"{where}: found {type(value).__name__}, allowed: plain values (numbers, text, lists, mappings)")


def _explain(error: ValidationError, where: str) -> UserError:
    """Return pydantic's first objection as an error with the key, the value found and what is allowed."""
    first = error.errors()[0]  # one error in one line; the others may only follow from it
    if isinstance(cause := first.get("ctx", {}).get("error"), UserError):  # one of our validators raised it
        return cause
    path = [str(part) for part in first["loc"]]
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
    """Return the model of the innermost section on a path of keys."""
    model: type[BaseModel] = Config
    nested: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "skew": SkewConfig,
        "augment": AugmentConfig,
        "train": TrainConfig,
        "early_stopping": EarlyStoppingConfig,
        "mesh": MeshConfig,
    }
    for part in path:
        model = nested.get(part, model)
    return model
