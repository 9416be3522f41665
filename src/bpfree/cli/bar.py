"""A progress bar for commands that train several runs."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bpfree.lab.jobs.jobs import Job


class RunsBar:
    """A progress bar on standard error: finished runs, all runs, and the names of the running ones.

    It is an `OnProgress` of `bpfree.lab.jobs.jobs`, and shows nothing if standard error is not a terminal.

    Attributes:
        console: the terminal.
        bar: the bar of rich.
        task: the number of the bar's only task.
    """

    def __enter__(self) -> "RunsBar":
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=None)  # the first call tells the number of runs
        if self.console.is_terminal:  # in a log file, each update of the bar would be a line
            self.bar.start()
        return self

    def __call__(self, running: Sequence[Job], done: int, total: int) -> None:
        """Show the progress; called by `run_jobs` whenever a job begins or ends."""
        self.bar.update(self.task, completed=done, total=total, description=", ".join(job.name for job in running))

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()
