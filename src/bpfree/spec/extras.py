"""Optional packages: imported when they are used; a missing one is an error that says how to install it."""

from importlib import import_module
from typing import Any

from bpfree.errors import UserError


def library(module: str, extra: str, section: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: its name.
        extra: the extra of bpfree that installs the package.
        section: the section of the config, or the argument, that needs it; the error names it.

    Raises:
        UserError: the package is not installed, or cannot be imported.

    Example:
        >>> library("no_such_package.part", "liquid", "net")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        bpfree.errors.UserError: net: needs the package no_such_package... pip install 'bpfree[liquid]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{section}: needs the package {package}, which is not installed. Install it: pip install 'bpfree[{extra}]'"
        ) from error
