"""The forms in which samples come with their labels: pairs, and mappings with the labels under a known name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bpfree.errors import UserError

LABELS = ("labels", "label", "y")
"""Names under which a mapping has its labels. Everything else in it goes to the net by name."""

ALLOWED = (
    "(samples, labels), where samples may be one array, a tuple of arrays or a dict of arrays by name, or a dict with "
    "its labels under 'labels', 'label' or 'y'"
)


class Record(NamedTuple):
    """Samples and labels, for one sample or for many.

    Attributes:
        x: one array, a tuple of arrays, or a dict of arrays by name.
        y: the labels.
    """

    x: Any
    y: Any


def is_data(value: Mapping[Any, Any]) -> bool:
    """Return True if a mapping holds arrays: then it is data, and not the options of a reader."""
    return any(len(getattr(inner, "shape", ())) > 0 for inner in value.values())


def record_of(value: Any, what: str) -> Record:
    """Return the samples and labels in a pair or a mapping.

    Args:
        value: one sample, a batch, or all samples.
        what: the beginning of an error, such as "data: found batches that are not pairs".

    Raises:
        UserError: the value has no labels, several labels, or more than two parts.

    Example:
        >>> record_of({"input_ids": [3, 4], "label": 1}, "data")
        Record(x={'input_ids': [3, 4]}, y=1)
    """
    if isinstance(value, Mapping):
        names_of_labels = [name for name in LABELS if name in value]
        if len(names_of_labels) == 1 and len(value) > 1:
            label = names_of_labels[0]
            return Record({name: inner for name, inner in value.items() if name != label}, value[label])
        names = ", ".join(map(str, value)) or "nothing"
        raise UserError(
            f"{what}, but {type(value).__name__} with {names}, allowed: {ALLOWED}. Give exactly one "
            "of these names, and samples beside it"
        )
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise UserError(f"{what}, but {type(value).__name__}, allowed: {ALLOWED}")
    if len(value) > 2:
        inputs = ", ".join("abcdefghij"[: len(value) - 1]) if len(value) <= 11 else "a, b, ..."
        raise UserError(
            f"{what}, but {len(value)} parts, allowed: {ALLOWED}. bpfree cannot tell which part is the label: "
            f"for several inputs give (({inputs}), labels), or a dict by the names of forward's arguments"
        )
    return Record(value[0], value[1])
