"""Describe the options of a constructor or of a section: name, type, default and meaning, from signature and docstring.

`bpfree show` prints these tables and `docs/fill.py` writes them into the pages, so nobody copies them by hand.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bpfree.spec.options import OptionGroup, group_in, shared_options, type_hints
from bpfree.spec.values import describe

REQUIRED = "needed"
"""The text in place of the default of an option that has none."""

_ROLE = re.compile(r":\w+:`~?([^`<]*?)(?: *<[^`]*>)?`")  # markup of Sphinx in the docstrings of torch
_TARGET = re.compile(r"`([^`<]+?)(?: *<[^`]*>)?`_+")
_DEFAULT = re.compile(r" *\(default: [^()]*(?:\([^()]*\)[^()]*)*\)")


class Option(NamedTuple):
    """An option of a constructor or of a section, in words.

    Attributes:
        name: the key in a config, and the keyword in Python.
        type: the type of its values.
        default: the value if the option is left out, or `REQUIRED`.
        meaning: what the option does.
    """

    name: str
    type: str
    default: str
    meaning: str


def options_of(constructor: Callable[..., Any], given: int = 0) -> list[Option]:
    """Return the options of a constructor in the order of its signature. Fields of a group follow it as "group.field".

    The docstring of the constructor explains the options, or one that it names as "see `Name`". A class whose
    `**options: Unpack[...]` have defaults lists these in the attribute `shared_defaults`.

    Args:
        constructor: a class, a function, or a class method that makes an object.
        given: the number of leading arguments that the library supplies itself.

    Raises:
        LookupError: no docstring explains an option.

    Example:
        >>> def blur(x: Any, *, width: int = 3) -> Any:
        ...     '''Blur an image.
        ...
        ...     Args:
        ...         x: the image.
        ...         width: pixels of the filter.
        ...     '''
        >>> options_of(blur, given=1)
        [Option(name='width', type='int', default='3', meaning='pixels of the filter.')]
    """
    docstrings = list(_docstrings(constructor))
    options: list[Option] = []
    for name, hint, default in _parameters(constructor, given):
        group, meaning = group_in(hint), _meaning(name, docstrings, str(constructor))
        options.append(Option(name, _type(hint), _shown(default), meaning))
        if group is not None:
            options += _fields_of_group(name, default if isinstance(default, group) else group())
    return options


def _fields_of_group(name: str, default: OptionGroup) -> list[Option]:
    kind = type(default)
    docstrings = [inspect.cleandoc(kind.__doc__ or "")]
    hints = get_type_hints(kind)
    return [
        Option(
            f"{name}.{field.name}",
            _type(hints[field.name]),
            _shown(getattr(default, field.name)),
            _meaning(field.name, docstrings, kind.__name__),
        )
        for field in fields(default)
    ]


def _parameters(constructor: Callable[..., Any], given: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and default of each option of a constructor."""
    hints = type_hints(constructor)
    for parameter in list(inspect.signature(constructor).parameters.values())[given:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            defaults = dict(getattr(constructor, "shared_defaults", {}))
            for other in _named(constructor):
                defaults = {p.name: p.default for p in inspect.signature(other).parameters.values()} | defaults
            for name, hint in (shared_options(hints.get(parameter.name)) or {}).items():
                yield name, hint, defaults.get(name)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            yield parameter.name, hints.get(parameter.name, Any), parameter.default


def _shown(default: Any) -> str:
    return REQUIRED if default is inspect.Parameter.empty else str(default)


def _type(hint: Any) -> str:
    """Return an annotation in words; a name or a mapping is a section of a config."""
    if group := group_in(hint):
        hint = hint if hint is not group else str | Mapping
    words = describe(hint).split(" or ")
    if "Mapping" not in words:
        return " or ".join(words)
    rest = [word for word in words if word not in ("Mapping", "text", group.__name__ if group else "")]
    return " or ".join(["a name", "a section", *rest])


def fields_of(section: type[BaseModel], *explained_by: type) -> list[Option]:
    """Return the keys of a section of a config.

    Args:
        section: the model of the section.
        explained_by: classes whose docstrings explain keys that the docstring of the section leaves out.

    Raises:
        LookupError: no docstring explains a key.
    """
    docstrings = [text for cls in (section, *explained_by) for text in _docstrings(cls)]
    options = []
    for name, field in section.model_fields.items():
        default = REQUIRED if field.is_required() else _default_of(field)
        meaning = _meaning(name, docstrings, section.__name__)
        options.append(Option(name, _range_of(field), default, meaning))
    return options


def _default_of(field: FieldInfo) -> str:
    """Return the default of a field as text; for a section with its own defaults, its keys are listed elsewhere."""
    default = field.get_default(call_default_factory=True)
    return "{}" if isinstance(default, BaseModel) else str(default)


def _range_of(field: FieldInfo) -> str:
    """Return the type of a field with its limits, such as "number, above 0, at most 1"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{text} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, text in words.items()
        if hasattr(constraint, name)
    ]
    return ", ".join([describe(field.annotation), *limits])


def summary(thing: Any) -> str:
    """Return the first paragraph of a docstring as one line.

    Args:
        thing: a class or a function.
    """
    return " ".join(_plain(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]).split())


def _docstrings(constructor: Callable[..., Any]) -> Iterator[str]:
    """Yield the docstrings that may explain an option of a constructor, the nearest one first."""
    owner = getattr(constructor, "__self__", constructor)  # of a class method, its class
    things = [constructor, *(owner.__mro__ if isinstance(owner, type) else ()), *_named(constructor)]
    for thing in things:
        yield inspect.cleandoc(thing.__doc__ or "")


def _named(constructor: Callable[..., Any]) -> list[Any]:
    """Return the functions and classes that a docstring names as "see `Name`" or "as for `Name`"."""
    module = sys.modules.get(constructor.__module__)
    names = re.findall(r"(?:see|as for) `(\w+)`", constructor.__doc__ or "")
    return [getattr(module, name) for name in names if callable(getattr(module, name, None))]


def _meaning(option: str, docstrings: list[str], where: str) -> str:
    for text in docstrings:
        # An entry goes on to the next line that is not indented more. torch also writes the type behind the name.
        pattern = rf"^ {{4}}{option}(?: \([^:]*?\))? ?:\s+(.*?)(?=^ {{4}}\S|^\S|\Z)"
        if entry := re.search(pattern, text, re.MULTILINE | re.DOTALL):
            return " ".join(_plain(entry[1].partition("\n\n")[0]).split())
    raise LookupError(f"{where}: no docstring explains the option {option}")


def _plain(text: str) -> str:
    """Return the text without the markup of Sphinx and without the defaults, which have a column of their own."""
    text = _TARGET.sub(r"\1", _ROLE.sub(r"\1", " ".join(text.split())))
    return _DEFAULT.sub("", text).replace("``", "`").strip()
