"""A progress bar for downloads and decoding, at a terminal or in a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, ProgressColumn, TextColumn

from bpfree.screen.live import LiveBar, Screen


@contextmanager
def bar(
    name: str, *figures: ProgressColumn, total: int | None = None, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs, and yield a function that takes the number of further steps.

    Args:
        name: the text before the bar.
        figures: the columns after the bar.
        total: the number of steps; None if it is not known.
        done: the number of steps that were done before.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *figures)
    shown = LiveBar(Screen(), *columns, total=total, done=done, description=name)
    try:
        yield lambda steps: shown.update(advance=steps)
    finally:
        shown.stop()
