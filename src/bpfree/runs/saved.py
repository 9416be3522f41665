"""Models of the JSON files in a run folder: state.json of a checkpoint, and result.json.

A folder may be damaged, or made by a stranger. All values that are read from it pass these models first, so later code
can rely on their types.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bpfree.data.preprocess import Preprocess
from bpfree.disk.plain import read_json
from bpfree.errors import UserError, shown
from bpfree.training.energy import Source
from bpfree.training.precision import Precision
from bpfree.training.progress import Progress

FORMAT = 2
Name = Literal["net", "rule", "data", "trackers", "loss", "augment"]
Numbers = dict[str, float]
# JSON has integers of any size, and torch's steps are 64 bits. strict: True and 3.0 are not counts.
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Plain = int | float | bool | str | None | list[Any]
Model = TypeVar("Model", bound=BaseModel)


def _number(value: Any) -> Any:
    # pydantic would accept text such as "1e3" and True as numbers.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("a number")
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Open(BaseModel):
    """A model that keeps other keys, which another version or a tracker of the user may have written."""

    model_config = ConfigDict(extra="allow")


class Epoch(_Open):
    """An epoch's line of metrics.jsonl."""

    kind: Literal["epoch"] = "epoch"
    epoch: Count
    step: Count
    train: Numbers
    validation: Numbers | None = None
    lr: Number
    samples_per_second: Number
    seconds: Number
    cpu_seconds: Number | None = None


class Measurement(_Open):
    """A tracker's record, one line of metrics.jsonl."""

    tracker: str
    step: Count
    values: Numbers


class Cost(BaseModel):
    """The time that a tracker took, and its number of measurements."""

    seconds: Number
    measurements: Count


class Logged(BaseModel):
    """The state of a logger: the id of its run, and how many records it has got."""

    id: str
    epochs: Count
    measurements: Count


class SavedProgress(BaseModel):
    """The saved form of `bpfree.training.progress.Progress`."""

    model_config = ConfigDict(extra="forbid")

    step: Count
    sums: Numbers
    counts: dict[str, Annotated[int, Field(ge=1, strict=True)]]
    best_score: Number | None
    best_epoch: Count
    stale: Count
    stopped: Annotated[bool, Field(strict=True)]
    why_stopped: str = ""
    queries: Number = 0.0
    wall_seconds: Number
    cpu_seconds: Number = 0.0
    energy_joules: Number | None = None
    energy_source: Source | None = None
    history: list[Epoch]
    tracked: list[Measurement] = []
    tracker_cost: dict[str, Cost] = {}
    logged: dict[str, Logged] = {}

    @model_validator(mode="after")
    def _agrees(self) -> "SavedProgress":
        # `Progress.means` divides one by the other.
        if self.sums.keys() != self.counts.keys():
            raise ValueError("sums and counts of the same names")
        # Other code takes the number of an epoch as its place in the history.
        if [record.epoch for record in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("a history of the epochs 1, 2, 3, ...")
        if self.best_epoch > len(self.history):
            raise ValueError("a best_epoch that is in the history")
        return self

    def load(self) -> Progress:
        """Return the progress in the form that the trainer has."""
        # Unset fields are left to Progress: an earlier version did not write them all.
        return Progress(**self.model_dump(exclude_unset=True))


class SavedOptimizer(BaseModel):
    """The plain part of an optimiser's state_dict."""

    state: dict[Annotated[int, Field(ge=0)], dict[str, Plain]]
    param_groups: list[dict[str, Plain]]


class SavedSchedule(BaseModel):
    """The values of a schedule that change while training."""

    last_epoch: Count
    step_count: Count = Field(alias="_step_count")
    last_lr: list[Number] = Field(alias="_last_lr")


def _preprocess(value: Any) -> Preprocess:
    if not isinstance(value, dict):
        raise ValueError("a mapping")
    return Preprocess.load(value)


class State(_Open):
    """The values of a checkpoint's state.json.

    Attributes:
        from_python: names of the parts that were Python objects; "given" in the file, as in earlier versions.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    format: Literal[2]
    progress: SavedProgress
    total_steps: Annotated[int, Field(ge=1, strict=True)]
    precision: Precision | None = None
    channels_last: bool | None = None
    optimizer: SavedOptimizer
    schedule: SavedSchedule
    preprocess: Annotated[Any, BeforeValidator(_preprocess)]
    from_python: list[Name] = Field(alias="given")
    config: dict[str, Any]

    @model_validator(mode="after")
    def _within(self) -> "State":
        # A step beyond the end would make `fit` do nothing and report a finished run.
        if self.progress.step > self.total_steps or self.schedule.last_epoch != self.progress.step:
            raise ValueError("a progress.step that is that of the schedule, and no more than total_steps")
        return self


class Result(_Open):
    """The values of result.json. Keys that are not named here are kept as they are."""

    test: Numbers | None
    validation: Numbers | None = None
    train: Numbers | None = None
    weights: Literal["last", "best"]
    rule: str
    net: str = "?"
    dataset: str
    seed: Count = 0
    epochs: Count = 0
    best_epoch: Count = 0
    parameters: Count = 0
    rule_parameters: Count = 0
    net_flops: Number | None = None
    head_flops: Number | None = None
    queries: Number | None = None
    wall_seconds: Number
    cpu_seconds: Number = 0.0
    energy_joules: Number | None = None
    energy_source: Source | None = None
    trackers: dict[str, Cost] = {}
    controls: dict[str, Numbers] = {}
    step_memory_bytes: Count | None = None
    peak_memory_bytes: Count | None = None
    memory_growth_bytes: Count | None = None
    versions: dict[str, str] = {}


def read_state(path: Path) -> State:
    """Read state.json of a checkpoint.

    Args:
        path: the file.

    Returns:
        Its values, checked.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is damaged, or has another format.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}, which is what this version reads")
    return _validated(State, values, path)


def read_result(path: Path) -> dict[str, Any]:
    """Read result.json of a run.

    Args:
        path: the file.

    Returns:
        Its values as they are in the file; they passed the model `Result`.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is damaged.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged: it holds no result. Delete it and go on with --resume")
    _validated(Result, values, path, ". Delete the file and go on with --resume")
    return values


def _validated(model: type[Model], values: Any, path: Path, cure: str = "") -> Model:
    """Return values as a model, or raise UserError with the first thing that pydantic objects to."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:6])  # a damaged file can nest without end
        if first["type"] == "missing":
            raise UserError(f"{path}: damaged: {key} is missing{cure}") from error
        allowed = first["msg"].removeprefix("Value error, ")
        allowed = allowed.removeprefix("Input should be ")
        # A whole section would fill the screen, and its keys are named already.
        found = f"found {shown(first['input'])}, " if not isinstance(first["input"], dict) else ""
        # An error of the whole model has an empty key, which leaves ": : ".
        raise UserError(f"{path}: damaged: {key}: {found}allowed: {allowed}{cure}".replace(": : ", ": ")) from error
