"""Convert one value of a config to the type of an option, and describe that type in words."""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bpfree.errors import UserError, shown

Spec = str | Mapping[str, Any]
"""A name, or a mapping with `name` and the constructor's options."""


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Convert a value to a type by pydantic's rules, which take "1e-3" for a float.

    Args:
        annotation: the type.
        value: a value from YAML, the command line or Python; a number of numpy becomes a Python number first.
        where: the key in the config, such as "rule.steps"; errors name it.

    Returns:
        The converted value.

    Raises:
        UserError: the value cannot be converted.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value.item() if isinstance(value, np.generic) else value)
    except ValidationError as error:
        raise UserError(f"{where}: found {shown(value)}, allowed: {describe(annotation)}") from error


def describe(annotation: Any) -> str:
    """Describe a type in words, for errors.

    Args:
        annotation: the type of an option.

    Example:
        >>> describe(int | None)
        'int or none'
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in args))
    if origin is tuple:
        return f"[{', '.join(describe(a) for a in args)}]"
    if origin is Callable:
        return "a function"
    if origin in (list, Sequence) and args:
        return f"a list of {describe(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    names = {type(None): "none", float: "number", bool: "true or false", str: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
