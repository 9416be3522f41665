"""How far a command is that starts several trainings."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bpfree.lab.jobs.jobs import Job


class RunsBar:
    """How many runs are over and which are going on, on standard error, if somebody is looking."""

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
        self.task = self.bar.add_task("", total=None)
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __call__(self, running: Sequence[Job], done: int, total: int) -> None:
        """As `bpfree.lab.jobs.jobs.run_jobs` tells it."""
        self.bar.update(self.task, completed=done, total=total, description=", ".join(job.name for job in running))

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()
