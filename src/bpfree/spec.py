"""A section of a config is a constructor call: `{name: dfa, feedback: orthogonal}` is `RULES["dfa"](feedback=...)`.

The constructor's own signature is the schema; there is no second one.
"""

import functools
import importlib
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bpfree.disk.paths import user_path
from bpfree.errors import UserError, shown, unknown

Spec = str | Mapping[str, Any]
"""A name, or a mapping with `name` and the constructor's options."""


_stranger: ContextVar[str | None] = ContextVar("_stranger", default=None)


@contextmanager
def without_foreign_code(source: Path, *, trust: bool = False) -> Iterator[None]:
    """Within it, a config of somebody else is read: a name such as "package.module:Class" is refused, not imported.

    Args:
        source: where the config is from, for errors.
        trust: the user has allowed it; then nothing changes.
    """
    token = _stranger.set(None if trust else str(source))
    try:
        yield
    finally:
        _stranger.reset(token)


def split_spec(spec: Spec, section: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a spec.

    Raises:
        UserError: it has no name.
    """
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{section}.name: found {shown(name)}, allowed: the name of a {section}")
    return name, options


def lookup(table: Mapping[str, Any], name: str, section: str, outside: type | None = None) -> Callable[..., Any]:
    """The constructor of that name: from the table, or from outside as "package.module:Class".

    This is the only place where a config makes anything be imported; see `without_foreign_code`.

    Args:
        outside: what a class from outside must derive from, so that a config cannot call just anything.

    Raises:
        UserError: there is none, or it is code that a run folder names and that the user has not allowed.
    """
    if name in table:
        return table[name]  # type: ignore[no-any-return]
    if outside is None or ":" not in name:
        raise unknown(section, name, table)
    if source := _stranger.get():
        raise UserError(
            f"{section}.name: found '{name}' in {source}, which names code that is not part of bpfree. It is not "
            "executed. If you trust whoever wrote it, allow it by --trust, in Python by trust=True, or pass the object"
        )
    if str(Path.cwd()) not in sys.path:  # last: no file there takes the place of a library
        sys.path.append(str(Path.cwd()))
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: no name, a relative one
        raise UserError(f"{section}.name: '{name}' cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, outside)):
        raise UserError(f"{section}.name: '{name}' is no {outside.__name__}; allowed: a class that derives from it")
    return found


def check_options(
    constructor: Callable[..., Any], options: Mapping[str, Any], section: str, given: int = 0
) -> dict[str, Any]:
    """The options, converted to the types of the constructor's signature.

    Args:
        given: how many leading arguments the library supplies itself.

    Raises:
        UserError: an unknown option, a wrong type, or a missing one.
    """
    hints = _hints(constructor)
    known: dict[str, inspect.Parameter] = {}
    for parameter in list(inspect.signature(constructor).parameters.values())[given:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            shared = shared_options(hints.get(parameter.name))
            if shared is None:
                return dict(options)
            hints |= shared
            known |= {name: inspect.Parameter(name, parameter.KEYWORD_ONLY, default=None) for name in shared}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            known[parameter.name] = parameter
    for key in options:
        if key not in known:
            if not known:
                raise UserError(f"{section}: takes no key '{key}'")
            raise unknown("key", key, known, f"{section}.", to=_name(constructor))
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise UserError(f"{section}.{parameter.name}: missing; {_name(constructor)} needs it")
    return {key: convert(hints.get(key, Any), value, f"{section}.{key}") for key, value in options.items()}


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
    for key in moved.keys() & values.keys():
        inner, _, name = moved[key].partition(".")
        before = result.get(inner) or {}
        options = {"name": before} if isinstance(before, str) else dict(before)
        if name in options:
            raise UserError(f"{section}: found both {key} and {moved[key]}, which are the same. Keep {moved[key]}")
        result[inner] = {**options, name: values[key]}
        warnings.warn(f"{section}.{key} is now {section}.{moved[key]}", DeprecationWarning, stacklevel=2)
    return result


def _name(constructor: Callable[..., Any]) -> str:
    """For people; of a class method such as `Classify.of`, that of its class."""
    owner = getattr(constructor, "__self__", None)
    return owner.__name__ if isinstance(owner, type) else constructor.__name__


def absolute_paths(constructor: Callable[..., Any], options: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The options; those that the constructor takes as a Path count from the current folder, and become absolute.

    So what is kept of a config can be run from anywhere.

    Raises:
        UserError: see `bpfree.disk.paths.user_path`.
    """
    hints = _hints(constructor)
    taken = {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}
    return {
        name: str(user_path(value, f"{section}.{name}").absolute())
        if name in taken and isinstance(value, str)
        else value
        for name, value in options.items()
    }


def shared_options(annotation: Any) -> dict[str, Any] | None:
    """Names and types of the options that `**options: Unpack[...]` of a TypedDict takes; None for any others."""
    described = typing.get_args(annotation)
    return typing.get_type_hints(described[0]) if described and typing.is_typeddict(described[0]) else None


def build(table: Mapping[str, Any], spec: Spec, *args: Any, section: str, outside: type | None = None) -> Any:
    """Look up, check and call: table[name](*args, **options)."""
    name, options = split_spec(spec, section)
    constructor = lookup(table, name, section, outside)
    checked = check_options(constructor, options, section, given=len(args))
    try:
        return constructor(*args, **checked)
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # torch checks ranges itself, such as a negative learning rate
        raise UserError(f"{section} {name}: {error}") from error


def convert(annotation: Any, value: Any, where: str) -> Any:
    """The value as that type, by pydantic's rules (so "1e-3" is a float).

    Raises:
        UserError: it cannot be.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value.item() if isinstance(value, np.generic) else value)
    except ValidationError as error:
        raise UserError(f"{where}: found {shown(value)}, allowed: {describe(annotation)}") from error


def describe(annotation: Any) -> str:
    """A type in words.

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
    names = {type(None): "none", float: "number", bool: "true or false", str: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


class Checked:
    """A base for classes of this package whose options are checked, as those in a config are, when Python calls them.

    An unknown option or one of a wrong type is a UserError that names it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__init__")
        if own is not None and cls.__module__.startswith("bpfree."):  # users' classes check their own
            cls.__init__ = _checking(cls, own)  # type: ignore[method-assign]


def _checking(owner: type, init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def checked(self: object, *args: Any, **options: Any) -> None:
        init(self, *args, **check_options(owner, options, owner.__name__, given=len(args)))

    return checked


def _hints(constructor: Callable[..., Any]) -> dict[str, Any]:
    target = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except NameError:  # an annotation that is only there for type checkers
        return {}
