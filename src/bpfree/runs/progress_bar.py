"""The progress of one training on the screen: a bar at a terminal or in a notebook, or one line for each epoch."""

import time
from collections.abc import Mapping

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from bpfree.data import Batches
from bpfree.screen.live import LiveBar, Screen
from bpfree.training.listener import Listener, Record
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

_SHORTEST_BAR = 8  # characters
_CHANGE_EVERY = 0.1  # seconds between two texts; an MLP takes thousands of steps in a second


def progress_of(screen: Screen, epochs: int, batches: Batches) -> Listener[Trainer]:
    """Return the listener that shows a training on a screen.

    Args:
        screen: where it is shown.
        epochs: length of the training.
        batches: the batches of an epoch.
    """
    return ProgressBar(screen, epochs, batches) if screen.is_live else EpochLines(screen, epochs)


class EpochLines(Listener[Trainer]):
    """Prints one line for each epoch, and a note if the rule chose the taps.

    Args:
        screen: where the lines go.
        epochs: length of the training.
    """

    def __init__(self, screen: Screen, epochs: int) -> None:
        self.screen = screen
        self.epochs = epochs

    def on_start(self, trainer: Trainer) -> None:
        """Say where the rule cuts the net if it chose the taps, and where a resumed training goes on."""
        if "taps" in (notes := trainer.rule.metadata()):
            name = type(trainer.rule).__name__
            self.screen.note(f"{name} cuts the net behind {notes['taps']} (`taps` chooses other places)")
        if trainer.progress.step:
            done = len(trainer.progress.history)
            self.screen.say(f"the run goes on after epoch {done}, step {trainer.progress.step}")

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Print the losses and metrics of the epoch and its seconds."""
        if self.screen.place != "lines":
            return
        before = trainer.progress.history[-2]["seconds"] if len(trainer.progress.history) > 1 else 0.0
        parts = [f"epoch {record['epoch']}/{self.epochs}", *_figures(record["train"], record.get("validation"))]
        self.screen.say("  ".join([*parts, f"{record['seconds'] - before:.1f} s"]))


class ProgressBar(EpochLines):
    """Shows a bar with epoch, loss, validation metric and the time that is left.

    On a narrow screen the text becomes shorter, so that the bar stays on one line.

    Args:
        screen: where the bar is; it is live.
        epochs: length of the training.
        batches: the batches of an epoch.
    """

    def __init__(self, screen: Screen, epochs: int, batches: Batches) -> None:
        super().__init__(screen, epochs)
        self.batches = batches
        self.train: Mapping[str, float] = {}
        self.validation: Mapping[str, float] | None = None
        self.changed = 0.0  # when the text was changed
        self.bar: LiveBar | None = None  # until the training starts

    def on_start(self, trainer: Trainer) -> None:
        """Show the bar before the first step."""
        super().on_start(trainer)
        self.bar = LiveBar(
            self.screen,
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            total=self.epochs * len(self.batches),
            done=trainer.progress.step,
            expand=True,
            description=self._epoch(trainer),
            figures="",
        )

    def on_step(self, trainer: Trainer, batch: Batch) -> None:
        """Move the bar on by one step."""
        if time.monotonic() - self.changed > _CHANGE_EVERY:
            # The trainer looks at losses only now and then. Until then those of the last epoch stay. In blocks mode a
            # process has the losses of its own parts only, until the epoch is over.
            if trainer.mesh.apart is None:
                self.train = trainer.progress.means() or self.train
            self._show(trainer)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Show the figures of the epoch."""
        self.train, self.validation = record["train"], record.get("validation")
        self._show(trainer)

    def on_end(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:  # training may fail before `on_start`
            self.bar.stop()

    def _epoch(self, trainer: Trainer) -> str:
        # `step` counts the step that was just taken, so the last step of an epoch still belongs to it.
        epoch = min((max(trainer.progress.step, 1) - 1) // len(self.batches) + 1, self.epochs)
        return f"epoch {epoch}/{self.epochs}"

    def _show(self, trainer: Trainer) -> None:
        assert self.bar is not None
        self.changed = time.monotonic()
        epoch = self._epoch(trainer)
        whole, short = (_figures(self.train, self.validation, is_short=is_short) for is_short in (False, True))
        forms = [whole, short, short[:1], []]
        if speed := self.bar.speed:
            forms.insert(0, [*whole, f"{speed * self.batches.batch_size:,.0f} samples/s"])
        # Beside the figures: the epoch, the bar, "ETA", the time, and a space between each two of the five columns.
        room = self.screen.width - len(epoch) - _SHORTEST_BAR - len("ETA") - len("0:00:00") - 4
        texts = ["  ".join(form) for form in forms]
        fits = next(text for text in texts if len(text) <= max(room, 0))
        self.bar.update(completed=trainer.progress.step, description=epoch, figures=fits)


def _figures(
    train: Mapping[str, float], validation: Mapping[str, float] | None = None, *, is_short: bool = False
) -> list[str]:
    """Return the loss and the metric that says most, such as "loss 0.2134" and "validation accuracy 96.1 %".

    Args:
        train: means over the training steps of an epoch; empty before the first look at the losses.
        validation: metrics on the validation split; None to show the training metric.
        is_short: True to leave out the name of the validation metric.
    """
    shown = [f"loss {_number(train['loss'])}"] if "loss" in train else []
    metrics = train if validation is None else validation
    name = next((name for name in ("accuracy", "rmse", "loss") if name in metrics), None)
    if name is None or (name == "loss" and validation is None):
        return shown
    value = f"{100 * metrics[name]:.1f} %" if name == "accuracy" else _number(metrics[name])
    label = name if validation is None else "val." if is_short else f"validation {name}"
    return [*shown, f"{label} {value}"]


def _number(value: float) -> str:
    """Return a number in about four digits."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 else f"{value:.4g}"
