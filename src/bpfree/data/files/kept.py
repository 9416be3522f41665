"""A file that keeps what took long to make, for later processes; it is whole or absent."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError

from bpfree.errors import UserError

_Made = TypeVar("_Made")


def kept_or_made(
    path: Path, load: Callable[[], _Made | None], make: Callable[[], _Made], save: Callable[[_Made], object]
) -> _Made:
    """Load the content of a file; if the file is missing or out of date, make the content and save it there.

    If several processes ask at the same time, one makes the content, and the others wait and load it.
    A folder that cannot be written raises nothing: then each process makes the content for itself.

    Args:
        path: the file.
        load: returns the content of the file; None if it is missing, damaged or out of date.
        make: makes the content.
        save: writes the content to the file, whole or not at all.
    """
    if (found := load()) is not None:
        return found
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.stem}.lock")))
        except (OSError, NotImplementedError):
            return make()
        if (found := load()) is not None:
            return found
        made = make()
        with suppress(UserError, OSError, SafetensorError):
            save(made)
    # A loaded content may stay in the file, where the one that was made fills the memory.
    return made if (found := load()) is None else found
