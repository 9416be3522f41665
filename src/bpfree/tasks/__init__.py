"""Tasks: the purposes that a net can be trained for. `TASKS[name].of(data)` makes a task for a data set."""

from collections.abc import Mapping
from typing import Any

from bpfree.data.labels import IGNORED
from bpfree.tasks.base import DataTask, Loss, custom_parts
from bpfree.tasks.classify import Classify
from bpfree.tasks.multilabel import Multilabel
from bpfree.tasks.reconstruct import Reconstruct
from bpfree.tasks.regress import Regress
from bpfree.tasks.segment import Segment
from bpfree.tasks.sequence import Sequence

TASKS: dict[
    str,
    type[Classify] | type[Multilabel] | type[Segment] | type[Reconstruct] | type[Regress] | type[Sequence],
] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "segment": Segment,
    "reconstruct": Reconstruct,
    "regress": Regress,
    "sequence": Sequence,
}


def label_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which `bpfree.data.make_dataset` reads labels for a task.

    Args:
        spec: the section `task` of a config, with its `name`.

    Example:
        >>> label_options({"name": "multilabel"})["answers"]
        'several'
    """
    task = TASKS[spec["name"]]
    ignored = spec.get("ignore_index", IGNORED) if task.answers == "pixels" else None
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
    "Loss",
    "Multilabel",
    "Reconstruct",
    "Regress",
    "Segment",
    "Sequence",
    "custom_options",
    "label_options",
]
