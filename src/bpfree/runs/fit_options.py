"""The options of `bpfree.fit` that are keys of a config: their types for type checkers, and errors for other options.

tests/test_api.py checks that the types name exactly the keys of the sections `data` and `train`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, TypedDict

from bpfree.data import DATASETS
from bpfree.data.subset import SkewKind
from bpfree.data.transforms import Transform
from bpfree.errors import UserError, shown, similar, unknown
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.spec import Spec, options_of
from bpfree.tasks import TASKS
from bpfree.training.compute import Update
from bpfree.training.graphs import Graph
from bpfree.training.mesh import BatchNorm, MeshName
from bpfree.training.optim import OPTIMIZERS, SCHEDULES
from bpfree.training.precision import Precision
from bpfree.training.ridge_readout import Readout


class EarlyStoppingOptions(TypedDict, total=False):
    """The keys of `early_stopping`; see `bpfree.EarlyStopping`."""

    metric: str | None
    patience: int


class MeshOptions(TypedDict, total=False):
    """The keys of `mesh`; see `bpfree.training.mesh.MeshSpec`."""

    name: MeshName
    batch_norm: BatchNorm
    replicas: int


class SkewOptions(TypedDict, total=False):
    """The keys of `skew`; see `bpfree.data.subset.Skew`."""

    kind: SkewKind
    factor: float


class AugmentOptions(TypedDict, total=False):
    """The keys of `augment`; see `bpfree.data.Augment`."""

    shift: int
    flip: bool
    crop: float
    brightness: float
    contrast: float
    cutout: int
    mixup: float
    transforms: list[str | dict[str, Any]]


class FitOptions(TypedDict, total=False):
    """The options of `bpfree.fit` beside its arguments: keys of the sections `data` and `train`, and two sections."""

    dir: str | PathLike[str] | None
    batch_size: int
    validation: float
    classes: int | Sequence[int] | None
    fraction: float
    skew: SkewOptions | None
    label_noise: float
    augment: AugmentOptions | Transform | Sequence[AugmentOptions | Transform]
    precision: Precision
    update: Update
    graph: Graph
    deterministic: bool
    mesh: MeshName | MeshOptions
    device: str
    clip: float | None
    early_stopping: EarlyStoppingOptions | None
    start_from: str | None
    freeze: Sequence[str]
    readout: Readout
    ridge: float
    schedule: Spec
    task: Spec


OTHER_NAMES = {
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "random_state": "seed",
    "learning_rate": "lr",
    "lr_rate": "lr",
    "wd": "weight_decay",
    "val_split": "validation",
    "validation_split": "validation",
    "grad_clip": "clip",
    "scheduler": "schedule",
    "callbacks": "trackers",
    "optim": "optimizer",
}
"""Names that other libraries have for options of ours."""


class _Place(NamedTuple):
    """A section whose options a user may give to `fit` by mistake."""

    section: str
    table: Mapping[str, Callable[..., Any]]
    given: int
    others: bool  # True to look at other names of the table, too: `momentum` belongs to sgd


_PLACES = (
    _Place("optimizer", OPTIMIZERS, 1, True),
    _Place("rule", RULES, 0, False),
    _Place("net", NETS, 2, False),
    _Place("data", DATASETS, 1, False),
    _Place("task", {name: task.of for name, task in TASKS.items()}, 1, True),
    _Place("schedule", SCHEDULES, 2, True),
)


def unknown_option(key: str, value: object, values: Mapping[str, Any], known: Iterable[str]) -> UserError:
    """Return the error for an argument that `fit` does not have; it says where the option belongs.

    Args:
        key: the name of the argument.
        value: its value.
        values: the sections of the config that the other arguments make.
        known: the arguments of `fit`.

    Example:
        >>> str(unknown_option("lr", 0.1, {"optimizer": "adam"}, ["epochs"]))
        'unknown argument lr: it is an option of the optimizer. Write optimizer={"name": "adam", "lr": 0.1}'
    """
    names = list(known)
    name = OTHER_NAMES.get(key.lower(), key)
    if name in names:
        return UserError(f"unknown argument {key}. Its name is {name}: {name}={shown(value)}")
    for place in _PLACES:
        if owner := _owner(place, name, values.get(place.section)):
            spec = ", ".join(f'"{k}": {_quoted(v)}' for k, v in {**owner, name: value}.items())
            where = f"it is an option of the {place.section}. Write {place.section}={{{spec}}}"
            return UserError(f"unknown argument {key}: {where}")
    error = unknown("argument", key, names)
    return error if similar(key, names) else UserError(f"{error}. `bpfree show train` and `show data` explain them")


def _quoted(value: object) -> str:
    """Return a value as it is written in the documentation, text in double quotes."""
    return f'"{value}"' if isinstance(value, str) else shown(value)


def _owner(place: _Place, option: str, spec: Any) -> dict[str, Any] | None:
    """Return the spec of the constructor in a section that has an option; None if there is none."""
    chosen = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    names = [chosen.get("name"), *(place.table if place.others else ())]
    for name in names:
        if name in place.table and option in {each.name for each in options_of(place.table[name], place.given)}:
            return chosen if name == chosen.get("name") else {"name": name}
    return None
