"""A progress bar for people at a terminal. If standard error is not a terminal, no bar is printed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bpfree.data import Batches
from bpfree.training.listener import Listener, Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

# A context variable, so that threads that train side by side do not hide each other's bars.
_hidden = ContextVar("_hidden", default=False)


@contextmanager
def hidden() -> Iterator[None]:
    """Show no bar for trainings in this block, since they are part of something that shows its own progress."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class ProgressBar(Listener[Trainer]):
    """Shows epoch, loss, accuracy and samples per second on standard error.

    Args:
        epochs: length of the training.
        batches: the batches of an epoch.
    """

    def __init__(self, epochs: int, batches: Batches) -> None:
        self.epochs = epochs
        self.batches = batches
        self.console = Console(stderr=True)
        self.shown = self.console.is_terminal and not _hidden.get()
        self.validation = ""

    def on_start(self, trainer: Trainer) -> None:
        """Show the bar if standard error is a terminal, and say where the rule cuts the net if it chose the taps."""
        if "taps" in (notes := trainer.rule.metadata()) and not _hidden.get():
            name = type(trainer.rule).__name__
            self.console.print(f"{name}: no taps were given, so the net is cut behind {notes['taps']}", highlight=False)
        if not self.shown:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        total = self.epochs * len(self.batches)
        self.task = self.bar.add_task("training", total=total, completed=trainer.progress.step, figures="")
        self.bar.start()

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Move the bar on by one step."""
        if not self.shown:
            return
        step, length = trainer.progress.step, len(self.batches)
        means = trainer.progress.means() if trainer.progress.counts else {}
        shown = [f"{name} {means[name]:.4f}" for name in ("loss", "accuracy") if name in means]
        if speed := self.bar.tasks[self.task].speed:
            shown.append(f"{speed * self.batches.batch_size:,.0f} samples/s")
        # `step` counts the step that was just taken, so the last step of an epoch still belongs to it.
        epoch = min((step - 1) // length + 1, self.epochs)
        figures = "  ".join([*shown, self.validation])
        self.bar.update(self.task, completed=step, description=f"epoch {epoch}/{self.epochs}", figures=figures)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Show the validation accuracy from now on."""
        if not self.shown:
            return
        if "validation" in record:
            self.validation = f"validation accuracy {record['validation'].get('accuracy', float('nan')):.4f}"

    def on_end(self) -> None:
        """Leave the terminal as it was."""
        # Training may fail before `on_start` has made the bar.
        if self.shown and hasattr(self, "bar"):
            self.bar.stop()
