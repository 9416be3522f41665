"""Tasks: the purposes that a net can be trained for. `TASKS[name].of(data)` makes a task for a data set."""

from collections.abc import Mapping
from typing import Any, Literal, overload

from bpfree.data.labels import IGNORED
from bpfree.tasks.base import DataTask, Loss, custom_parts
from bpfree.tasks.classify import Classify
from bpfree.tasks.language import Language
from bpfree.tasks.multilabel import Multilabel
from bpfree.tasks.reconstruct import Reconstruct
from bpfree.tasks.regress import Regress
from bpfree.tasks.segment import Segment
from bpfree.tasks.sequence import Sequence

AnyTask = (
    type[Classify]
    | type[Multilabel]
    | type[Segment]
    | type[Reconstruct]
    | type[Regress]
    | type[Sequence]
    | type[Language]
)


_TABLE: dict[str, AnyTask] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "segment": Segment,
    "reconstruct": Reconstruct,
    "regress": Regress,
    "sequence": Sequence,
    "language": Language,
}


class TaskTable(dict[str, AnyTask]):
    """A table of tasks. Type checkers know each entry: `TASKS["classify"](10)` is a `Classify`."""

    @overload
    def __getitem__(self, name: Literal["classify"], /) -> type[Classify]: ...
    @overload
    def __getitem__(self, name: Literal["multilabel"], /) -> type[Multilabel]: ...
    @overload
    def __getitem__(self, name: Literal["segment"], /) -> type[Segment]: ...
    @overload
    def __getitem__(self, name: Literal["reconstruct"], /) -> type[Reconstruct]: ...
    @overload
    def __getitem__(self, name: Literal["regress"], /) -> type[Regress]: ...
    @overload
    def __getitem__(self, name: Literal["sequence"], /) -> type[Sequence]: ...
    @overload
    def __getitem__(self, name: Literal["language"], /) -> type[Language]: ...
    @overload
    def __getitem__(self, name: str, /) -> AnyTask: ...
    def __getitem__(self, name: str, /) -> AnyTask:
        return super().__getitem__(name)


TASKS = TaskTable(_TABLE)
"""Every task by its name. `bpfree list tasks` shows them."""


def label_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which `bpfree.data.make_dataset` reads labels for a task.

    Args:
        spec: the section `task` of a config, with its `name`.

    Example:
        >>> label_options({"name": "multilabel"})["answers"]
        'several'
    """
    task = TASKS[spec["name"]]
    ignored = spec.get("ignore_index", IGNORED) if task.answers in ("pixels", "tokens") else None
    return {
        "without_labels": task.rebuilds,
        "values": task.values,
        "answers": task.answers,
        "ignored": ignored,
    }


def custom_options(spec: Mapping[str, Any]) -> str:
    """Return the names of the options that change the loss of a task, joined by "and"; "" if none is set.

    Args:
        spec: the section `task` of a config.

    Example:
        >>> custom_options({"name": "classify", "label_smoothing": 0.1})
        'task.label_smoothing'
    """
    options = ("class_weights", "positive_weights", "label_smoothing")
    return custom_parts(**{f"task.{option}": spec.get(option) for option in options})


__all__ = [
    "TASKS",
    "Classify",
    "DataTask",
    "Language",
    "Loss",
    "Multilabel",
    "Reconstruct",
    "Regress",
    "Segment",
    "Sequence",
    "TaskTable",
    "custom_options",
    "label_options",
]
