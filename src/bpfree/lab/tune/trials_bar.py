"""The progress of a search on the screen: a bar, or a line for each trial."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from bpfree.lab.tune.plan import Plan
from bpfree.screen.live import LiveBar, Screen


@contextmanager
def trials_bar(plan: Plan, verbose: bool | None = None) -> Iterator[Callable[[int, float | None], None]]:
    """Show the progress of a search while the block runs, and yield the function that updates it.

    The function takes the number of finished trials and the best value so far.

    Args:
        plan: the search.
        verbose: where it is shown; see `bpfree.screen.live.Screen`.
    """
    screen = Screen(verbose)
    bar = LiveBar(
        screen,
        TextColumn("trials"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        total=plan.trials,
    )
    said = -1  # the number of finished trials that the last line named

    def on_progress(finished: int, best: float | None) -> None:
        nonlocal said
        text = "" if best is None else f"best {plan.objective} {best:.4f}"
        if screen.is_live:
            bar.update(completed=finished, description=text)
        elif finished != said:
            screen.say(f"trials: {finished} of {plan.trials} are finished{text and f', {text}'}")
            said = finished

    try:
        yield on_progress
    finally:
        bar.stop()
