"""Find the constructor that a section of a config names, and call it."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from bpfree.errors import UserError, shown, unknown
from bpfree.spec.options import check_options
from bpfree.spec.values import Spec

# A context variable and not an argument: `lookup` is reached through constructors that know nothing of where a config
# comes from, and two threads may load two runs at once.
_untrusted_source: ContextVar[str | None] = ContextVar("_untrusted_source", default=None)


@contextmanager
def without_foreign_code(source: Path, *, trust: bool = False) -> Iterator[None]:
    """Refuse names such as "package.module:Class" while the block runs, because importing them executes code.

    Args:
        source: the file that the config comes from; errors name it.
        trust: True if the user has allowed the import. Then nothing is refused.
    """
    token = _untrusted_source.set(None if trust else str(source))
    try:
        yield
    finally:
        _untrusted_source.reset(token)


def refuse_untrusted(section: str, what: str) -> None:
    """Refuse an option that sends or writes somewhere, if the config comes from a folder that nobody vouched for.

    Args:
        section: the section of the config; errors name it.
        what: the rest of the sentence, such as "logs to http://localhost:5000".

    Raises:
        UserError: the config is untrusted; see `without_foreign_code`.
    """
    if source := _untrusted_source.get():
        raise UserError(
            f"{section}: the config {source} {what}, which whoever wrote it has chosen. If you trust them, or wrote it "
            "yourself, allow it by --trust, in Python by trust=True"
        )


def split_spec(spec: Spec, section: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its options.

    Args:
        spec: a name, or a mapping with `name` and options.
        section: the section of the config; errors name it.

    Returns:
        The name, and a new dict of the options, empty for a bare name.

    Raises:
        UserError: the spec has no name.
    """
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{section}.name: found {shown(name)}, allowed: the name of a {section}")
    return name, options


def lookup(table: Mapping[str, Any], name: str, section: str, outside: type | None = None) -> Callable[..., Any]:
    """Return the constructor with a name: an entry of the table, or an outside class written "package.module:Class".

    Args:
        table: the constructors of this package by name.
        name: a key of the table, or "package.module:Class".
        section: the section of the config; errors name it.
        outside: the base class that an outside class must derive from, so that a config cannot call any function.
            Default: outside classes are refused.

    Returns:
        The constructor, not called yet.

    Raises:
        UserError: no constructor has this name, or an untrusted config names outside code.
    """
    if name in table:
        return table[name]  # type: ignore[no-any-return]
    if outside is None or ":" not in name:
        raise unknown(section, name, table)
    constructor = imported(name, section)
    if not (isinstance(constructor, type) and issubclass(constructor, outside)):
        raise UserError(
            f"{section}.name: '{name}' is not a {outside.__name__}; allowed: a class that derives from "
            f"{outside.__name__}"
        )
    return constructor


def imported(name: str, section: str) -> Any:
    """Return what a config names as "package.module:Name", which executes that module.

    No other place imports a module because a config names it; see `without_foreign_code`.

    Args:
        name: "package.module:Name".
        section: the section of the config; errors name it.

    Raises:
        UserError: it cannot be imported, or the config is untrusted.
    """
    if source := _untrusted_source.get():
        raise UserError(
            f"{section}.name: found '{name}' in {source}, which names code that is not part of bpfree. It is not "
            "executed. If you trust whoever wrote it, allow it by --trust, in Python by trust=True, or pass the object"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # at the end, so that a file in the current folder never hides a library
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # ValueError: empty; TypeError: relative name
        raise UserError(f"{section}.name: '{name}' cannot be imported ({error})") from error


def build(table: Mapping[str, Any], spec: Spec, *args: Any, section: str, outside: type | None = None) -> Any:
    """Look up a constructor, check the options, and call it: `table[name](*args, **options)`.

    Args:
        table: the constructors of this package by name.
        spec: a name, or a mapping with `name` and options.
        *args: the arguments that the library supplies itself.
        section: the section of the config; errors name it.
        outside: see `lookup`.

    Returns:
        The new object.

    Raises:
        UserError: an unknown name or option, a value of a wrong type, or a value that the constructor refuses.
    """
    name, options = split_spec(spec, section)
    constructor = lookup(table, name, section, outside)
    checked = check_options(constructor, options, section, given=len(args))
    try:
        return constructor(*args, **checked)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # torch checks ranges itself, such as lr < 0
        raise UserError(f"{section} {name}: {error}") from error
