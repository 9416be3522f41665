"""The forms in which samples come with their labels: pairs, and mappings that have a label under a known name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bpfree.errors import UserError

LABELS = ("labels", "label", "y")
"""Names under which a mapping has its labels; everything else in it goes to the net by name."""

ALLOWED = (
    "(samples, labels), where samples may be one array, a tuple of arrays or a dict of arrays by name, or a dict with "
    "its labels under 'labels', 'label' or 'y'"
)


class Record(NamedTuple):
    """Samples and labels, of one sample or of many."""

    x: Any
    y: Any


def is_data(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds arrays, and so is data and not the options of a reader."""
    return any(len(getattr(inner, "shape", ())) > 0 for inner in value.values())


def record_of(value: Any, what: str) -> Record:
    """Samples and labels of a pair or a mapping.

    Args:
        value: of one sample, a batch, or all.
        what: what it is, for errors.

    Raises:
        UserError: it has no labels, several, or more parts than two.
    """
    if isinstance(value, Mapping):
        found = [name for name in LABELS if name in value]
        if len(found) == 1 and len(value) > 1:
            return Record({name: inner for name, inner in value.items() if name != found[0]}, value[found[0]])
        names = ", ".join(map(str, value)) or "nothing"
        raise UserError(
            f"{what}, but {type(value).__name__} with {names}, allowed: {ALLOWED}. Exactly one of those names must be "
            "there, and samples beside it"
        )
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise UserError(f"{what}, but {type(value).__name__}, allowed: {ALLOWED}")
    if len(value) > 2:
        inputs = ", ".join("abcdefghij"[: len(value) - 1]) if len(value) <= 11 else "a, b, ..."
        raise UserError(
            f"{what}, but {len(value)} parts, allowed: {ALLOWED}. It cannot be told which part is the label: of "
            f"several inputs give (({inputs}), labels), or a dict by the names of forward's arguments"
        )
    return Record(value[0], value[1])
