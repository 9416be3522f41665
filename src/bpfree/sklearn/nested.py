"""Parameters within parameters: `optimizer__lr` is the key `lr` of the spec `optimizer`."""

from collections.abc import Mapping
from typing import Any

from bpfree.errors import UserError, shown

NESTED = ("rule", "net", "optimizer", "options")
"""Parameters of an estimator that may be mappings."""


def nested_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of parameters that are mappings, under names such as "optimizer__lr".

    Args:
        params: the parameters of an estimator by name.

    Example:
        >>> nested_values({"rule": "dfa", "optimizer": {"name": "sgd", "lr": 0.1}})
        {'optimizer__lr': 0.1}
    """
    return {
        f"{name}__{key}": value
        for name in NESTED
        if isinstance(params.get(name), Mapping)
        for key, value in params[name].items()
        if key != "name"
    }


def with_key(name: str, spec: Any, key: str, value: Any, *, default: str) -> dict[str, Any]:
    """Return a parameter as a new mapping in which one key has another value.

    Args:
        name: of the parameter; errors name it.
        spec: its present value: a name, a mapping, or None.
        key: the key.
        value: its new value.
        default: the name that None stands for.

    Raises:
        UserError: the present value is an object, whose options were given to its constructor.

    Example:
        >>> with_key("optimizer", "sgd", "lr", 0.1, default="adam")
        {'name': 'sgd', 'lr': 0.1}
    """
    if name == "options":
        spec = {} if spec is None else spec
    elif spec is None or isinstance(spec, str):
        spec = {"name": spec or default}
    if not isinstance(spec, Mapping):
        raise UserError(
            f"{name}__{key}: found {shown(value)}, but {name} is an object ({type(spec).__name__}), allowed: {name} as "
            f"a name or a mapping, such as {{'name': ..., {key!r}: {shown(value)}}}"
        )
    return {**spec, key: value}
