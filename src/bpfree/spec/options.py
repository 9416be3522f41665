"""Check the options of a section against the signature of a constructor."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from bpfree.disk.paths import user_path
from bpfree.errors import UserError, shown, unknown
from bpfree.spec.moved import move_old_keys
from bpfree.spec.values import Spec, convert


@dataclass(frozen=True)
class OptionGroup:
    """Options that belong together, such as the name and the ends of a schedule: a section inside a section.

    Subclasses are frozen dataclasses whose fields all have defaults. In a config and in a Python call a group is
    written as a name (the field `name`), or as a mapping of some fields. A field that is left out keeps the value of
    the argument's default, so one dataclass serves constructors with different defaults.

    Example:
        >>> @dataclass(frozen=True)
        ... class Ends(OptionGroup):
        ...     name: str = "cosine"
        ...     last: float = 0.999
        >>> print(Ends.of({"last": "0.9"}, "rule.schedule", default=Ends("linear")))
        {name: linear, last: 0.9}
    """

    @classmethod
    def of(cls, value: "Self | Spec | None", section: str, default: Self | None = None) -> Self:
        """Make a group from what a config or a caller wrote.

        Args:
            value: a group, which is returned as it is; a name; a mapping of fields; or None for the default.
            section: the name of the group; errors name it.
            default: the values of fields that are left out. Default: those of the class.

        Raises:
            UserError: an unknown field, or a value of a wrong type.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, str | Mapping | None):
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{section}: found {shown(value)}, allowed: a name, or a section of keys ({names})")
        written = {"name": value} if isinstance(value, str) else value or {}
        return replace(default or cls(), **check_options(cls, written, section))

    def __str__(self) -> str:
        """The group as YAML on one line, for the tables of options in docs."""
        return f"{{{', '.join(f'{field.name}: {getattr(self, field.name)}' for field in fields(self))}}}"


def check_options(
    constructor: Callable[..., Any], options: Mapping[str, Any], section: str, given: int = 0
) -> dict[str, Any]:
    """Convert options to the types of a constructor's signature.

    Keys of earlier versions, which the constructor lists in its attribute `moved_options`, go to their new places
    first, with a DeprecationWarning; see `move_old_keys`.

    Args:
        constructor: a class or a function. Its signature says which options there are.
        options: the options as a config or a caller wrote them.
        section: the section of the config; errors name it.
        given: the number of leading arguments that the library supplies itself. They are not options.

    Returns:
        The options that were given, converted; options that were left out stay out.

    Raises:
        UserError: an unknown option, a value of a wrong type, or a missing option.
    """
    options = move_old_keys(options, getattr(constructor, "moved_options", {}), section)
    hints = type_hints(constructor)
    known: dict[str, inspect.Parameter] = {}
    for parameter in list(inspect.signature(constructor).parameters.values())[given:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            shared = shared_options(hints.get(parameter.name))
            if shared is None:
                return dict(options)  # the constructor takes any option, so there is nothing to check
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
    checked: dict[str, Any] = {}
    for key, value in options.items():
        hint, where = hints.get(key, Any), f"{section}.{key}"
        group = group_in(hint)
        default = known[key].default
        if group is None:
            checked[key] = convert(hint, value, where)
        else:
            checked[key] = group.of(value, where, default if isinstance(default, group) else None)
    return checked


def group_in(annotation: Any) -> type[OptionGroup] | None:
    """Return the option group of an annotation such as `ScheduleSpec | Spec`; None if there is none.

    Args:
        annotation: the type of an option.
    """
    kinds = (annotation, *typing.get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, OptionGroup)), None)


def _name(constructor: Callable[..., Any]) -> str:
    """The name of a constructor for people; for a class method such as `Classify.of` the name of the class."""
    owner = getattr(constructor, "__self__", None)
    return owner.__name__ if isinstance(owner, type) else constructor.__name__


def absolute_paths(constructor: Callable[..., Any], options: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Make the paths among the options absolute, so that a saved config can be run from any folder.

    Args:
        constructor: its signature says which options are paths.
        options: as the config has them. A relative path is relative to the current folder.
        section: the section of the config; errors name it.

    Returns:
        A new dict of all options.

    Raises:
        UserError: see `bpfree.disk.paths.user_path`.
    """
    paths = {name for name, hint in option_types(constructor).items() if Path in (hint, *typing.get_args(hint))}
    return {
        name: str(user_path(value, f"{section}.{name}").absolute())
        if name in paths and isinstance(value, str)
        else value
        for name, value in options.items()
    }


def option_types(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotation of each argument of a constructor by name, in order.

    The options of `**options: Unpack[SomeTypedDict]` stand there by their own names.

    Args:
        constructor: a class or a function.
    """
    hints, types = type_hints(constructor), dict[str, Any]()
    for parameter in inspect.signature(constructor).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            types |= shared_options(hints.get(parameter.name)) or {}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            types[parameter.name] = hints.get(parameter.name, Any)
    return types


def shared_options(annotation: Any) -> dict[str, Any] | None:
    """The types of the options in `**options: Unpack[SomeTypedDict]` by name; None for any other annotation.

    Args:
        annotation: the annotation of a constructor's `**options`.
    """
    described = typing.get_args(annotation)
    return typing.get_type_hints(described[0]) if described and typing.is_typeddict(described[0]) else None


class Checked:
    """A base class that checks options in Python calls as options in a config are checked.

    An unknown option or a value of a wrong type is a UserError that names the option. Only classes of this package are
    checked; classes of users that derive from them check their own options.

    Attributes:
        moved_options: the new places of options that had another name in earlier versions; see `move_old_keys`.
    """

    moved_options: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        init = cls.__dict__.get("__init__")  # not an inherited one, which is wrapped already
        if init is not None and cls.__module__.startswith("bpfree."):
            cls.__init__ = _checking(cls, init)  # type: ignore[method-assign]


def _checking(owner: type, init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)  # inspect.signature then still shows the options of `init`
    def checked(self: object, *args: Any, **options: Any) -> None:
        init(self, *args, **check_options(owner, options, owner.__name__, given=len(args)))

    return checked


def type_hints(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a constructor's arguments by name; empty if an annotation exists for type checkers only.

    Args:
        constructor: a class or a function.
    """
    target = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except NameError:  # the options stay unconverted
        return {}
