"""A progress bar for downloads and decoding, on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


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
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda steps: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *figures)
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(name, total=total, completed=done)
        yield lambda steps: shown.update(task, advance=steps)
