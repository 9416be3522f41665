"""Keys of earlier versions: an option that has moved is still found at its old key, with a warning."""

import warnings
from collections.abc import Mapping
from typing import Any

from bpfree.errors import UserError


def moved_keys(table: Mapping[str, Any], spec: Any) -> Mapping[str, str]:
    """The new places of the options of the constructor that a section names, by their old keys.

    Args:
        table: the constructors of the section by name; each lists its moved options in the attribute `moved_options`.
        spec: the section as it was written: a name, or a mapping with `name`.
    """
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    constructor = table.get(name) if isinstance(name, str) else None
    moved: Mapping[str, str] = getattr(constructor, "moved_options", {})
    return moved


def move_old_keys(values: Mapping[str, Any], moved: Mapping[str, str], section: str) -> dict[str, Any]:
    """Return the values of a section with keys of earlier versions at their new places; each one warns.

    Args:
        values: a section of a config, as it was read. It stays as it is.
        moved: new places by old keys, such as `{"flip": "augment.flip"}`. The part before the dot is a section within
            this one: a mapping, or a name, which becomes `{"name": ...}`.
        section: the name of the section, for the warning.

    Raises:
        UserError: a key is there at its old and at its new place.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     move_old_keys({"flip": True, "batch_size": 5}, {"flip": "augment.flip"}, "data")
        {'batch_size': 5, 'augment': {'flip': True}}
    """
    result = {key: value for key, value in values.items() if key not in moved}
    for key in (key for key in values if key in moved):
        inner, _, name = moved[key].partition(".")
        before = result.get(inner) or {}
        options = {"name": before} if isinstance(before, str) else before
        if not isinstance(options, Mapping) or name in options:  # a group from Python has each of its fields
            raise UserError(f"{section}: found both {key} and {moved[key]}, which are the same. Keep {moved[key]}")
        result[inner] = {**options, name: values[key]}
        # level 4 is the caller of a constructor whose options are checked; only there does Python show the warning
        warnings.warn(f"{section}.{key} is now {section}.{moved[key]}", DeprecationWarning, stacklevel=4)
    return result
