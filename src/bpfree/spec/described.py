"""Show an object as the constructor call that makes it."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from bpfree.errors import shown
from bpfree.spec.options import OptionGroup


class Described:
    """A base class whose repr is the constructor call: the class, and the options that differ from their defaults.

    The arguments are remembered as the caller passed them. What the object becomes later, such as a rule that is bound
    to a net, does not change its repr.

    Example:
        >>> class Rate(Described):
        ...     def __init__(self, start: float, *, decay: float = 0.9) -> None:
        ...         self.start = start
        >>> Rate(0.1, decay=0.9), Rate(0.1, decay=0.5)
        (Rate(0.1), Rate(0.1, decay=0.5))
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        init = cls.__dict__.get("__init__")  # not an inherited one, which is wrapped already
        if init is not None:
            cls.__init__ = _remembering(init)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        arguments, options = vars(self).get("_arguments", ((), {}))
        parameters = inspect.signature(type(self)).parameters
        texts = [_text(value) for value in arguments]
        for name, value in options.items():
            text = _text(value)
            # Texts are compared, because `==` of arrays is not True or False.
            if name not in parameters or text != _text(parameters[name].default):
                texts.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(texts)})"


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)  # inspect.signature then still shows the options of `init`
    def remembering(self: object, *args: Any, **options: Any) -> None:
        # Directly, because a torch module takes no attributes before its own constructor ran. The constructor of the
        # class itself is called before those of its bases, so the first arguments are the user's.
        vars(self).setdefault("_arguments", (args, options))
        init(self, *args, **options)

    return remembering


def _text(value: Any) -> str:
    """Return a value as Python writes it: groups of options as dicts, functions and classes by their names."""
    if isinstance(value, OptionGroup):
        return shown({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Path):
        return repr(str(value))
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__name__
    return shown(value)
