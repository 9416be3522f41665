"""How far a download or a decoding is, on standard error, if somebody is looking."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


@contextmanager
def bar(
    name: str, *figures: ProgressColumn, total: int | None = None, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """A bar for as long as the block runs; what it hands over is to be told of each step.

    Args:
        name: shown before the bar.
        figures: shown after it.
        total: steps, if they are known.
        done: steps that were taken before.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda steps: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *figures)
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(name, total=total, completed=done)
        yield lambda steps: shown.update(task, advance=steps)
