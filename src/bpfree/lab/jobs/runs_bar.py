"""The progress of several runs on the screen: a bar, or a line whenever a run begins or ends."""

import time
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from bpfree.errors import UserError
from bpfree.lab.jobs.jobs import Job
from bpfree.runs import folder
from bpfree.screen.live import LiveBar, Screen

_BAR_WIDTH = 20  # characters


class RunsBar:
    """Shows finished runs, all runs, and the names of those that run now.

    It is an `OnProgress` of `bpfree.lab.jobs.jobs`, and a context manager that leaves the terminal as it was.

    Args:
        verbose: where it is shown; see `bpfree.screen.live.Screen`.

    Attributes:
        screen: the place.
        bar: the bar.
        begun: when each run that runs now began, in seconds.
    """

    def __init__(self, verbose: bool | None = None) -> None:
        self.screen = Screen(verbose)
        self.begun: dict[Job, float] = {}
        self._said_total = False

    def __enter__(self) -> "RunsBar":
        self.bar = LiveBar(
            self.screen,
            TextColumn("runs"),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )  # the first call says how many runs there are
        return self

    def __call__(self, running: Sequence[Job], done: int, total: int) -> None:
        """Show the progress; called by `run_jobs` whenever a job begins or ends."""
        if self.screen.is_live:
            # What is left beside "runs", the bar, "12/345", the time, and a space between each two of the columns.
            room = self.screen.width - len("runs") - _BAR_WIDTH - len(f"{done}/{total}") - len("0:00:00") - 6
            names = ", ".join(job.name for job in running)
            self.bar.update(
                completed=done, total=total, description=names if len(names) <= room else f"{names[: room - 3]}..."
            )
            return
        if not self._said_total:
            self._said_total = True
            self.screen.say(f"{total} runs, {done} of them finished before")
        for job in [job for job in self.begun if job not in running]:
            self.screen.say(
                f"ends: {job.name}, {_outcome(job, time.monotonic() - self.begun.pop(job))}, {done}/{total}"
            )
        for job in [job for job in running if job not in self.begun]:
            self.begun[job] = time.monotonic()
            self.screen.say(f"begins: {job.name}")

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _outcome(job: Job, seconds: float) -> str:
    """Return the test metric of a run, or the validation metric, and its time; or that it has no result."""
    try:
        result = folder.read_result(job.folder)
    except (UserError, OSError):  # whoever reads the results later says what is wrong with the file
        result = None
    if result is None:
        return f"no result after {seconds:.1f} s"
    split = "test" if result.get("test") else "validation"
    metrics = result.get(split) or {}
    name = next((name for name in ("accuracy", "rmse", "loss") if name in metrics), None)
    value = "" if name is None else f"{split} {name} {metrics[name]:.4f}, "
    return f"{value}{seconds:.1f} s"
