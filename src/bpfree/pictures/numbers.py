"""What a net that gives numbers says: predicted against true, and how its own predictions carry beside the truth."""

from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bpfree.data import Split
from bpfree.pictures.plots import BLUE, GREY, write_figure
from bpfree.tasks import Regress, Sequence
from bpfree.tasks.sequence import can_step, closed_loop, valid_steps

if TYPE_CHECKING:
    from bpfree.runs.run import Run

_DOTS = 500  # samples of which each is one
_NUMBERS = 6  # of the D of an answer
_WINDOWS, _COMPONENTS = 3, 3
_MARGIN = 0.25  # of the range of the truth, beyond which a prediction leaves the panel


class Predicted(NamedTuple):
    """Answers and truth of N samples, in the units of the data, both [N, D]."""

    said: Tensor
    true: Tensor

    def figure(self, numbers: Many[int]) -> Figure:
        """A panel for each of these of the D numbers: predicted upwards, true to the right."""
        figure = Figure(figsize=(4.4 * len(numbers), 4.2), layout="constrained")
        for axes, d in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
            said, true = self.said[:, d].numpy(), self.true[:, d].numpy()
            ends = float(true.min()), float(true.max())
            axes.plot(ends, ends, color=GREY, lw=1.0)
            axes.plot(true, said, ".", color=BLUE, alpha=0.6, markeredgewidth=0)
            axes.set_ylim(*_reach(self.true[:, d]))
            which = f" of number {d}" if self.true.shape[1] > 1 else ""
            _plain(axes, x=f"true value{which}", y="predicted")
        return figure

    @property
    def shown(self) -> range:
        """Of the D numbers."""
        return range(min(self.true.shape[1], _NUMBERS))


class Carried(NamedTuple):
    """Windows and what a net says of them, of N windows of T steps.

    Attributes:
        truth: [N, T, D], the values that were to be predicted.
        said: [N, K, D], predictions of the last K of these steps.
        valid: [N], how many of the K are good; None if the net is told the truth at each step.
    """

    truth: Tensor
    said: Tensor
    valid: Tensor | None

    def figure(self, windows: Many[int]) -> Figure:
        """A column for each of these windows, a panel for each component."""
        components = min(self.truth.shape[2], _COMPONENTS)
        figure = Figure(figsize=(4.8 * len(windows), 1.1 + 1.5 * components), layout="constrained")
        panels = figure.subplots(components, len(windows), squeeze=False, sharex=True)
        for column, window in enumerate(windows):
            for d in range(components):
                self._draw(panels[d, column], window, d)
            panels[-1, column].set_xlabel("step")
        lines, names = panels[0, 0].get_legend_handles_labels()
        columns = 2 * min(len(windows), 2)
        figure.legend(lines, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        return figure

    def _draw(self, axes: Axes, window: int, d: int) -> None:
        steps, own = self.truth.shape[1], self.said.shape[1]
        begun = steps - own + 1  # step 0 is the first that the net sees, of step 1 it is the first to speak
        axes.plot(range(1, steps + 1), self.truth[window, :, d].numpy(), color=GREY, lw=1.8, label="truth")
        axes.plot(range(begun, steps + 1), self.said[window, :, d].numpy(), color=BLUE, lw=1.4, label="prediction")
        if self.valid is not None:
            axes.axvline(begun - 1, color=GREY, lw=1.2, ls="--", label="alone from here")
            axes.axvline(begun - 1 + int(self.valid[window]), color=BLUE, lw=1.2, ls=":", label="valid to here")
        axes.set_ylim(*_reach(self.truth[window, :, d]))
        _plain(axes, y="value" if self.truth.shape[2] == 1 else f"value {d}")


def predicted(run: "Run", split: Split) -> Predicted:
    """By a run with the task regress, of the first samples of a split."""
    few = split.take(torch.arange(min(_DOTS, len(split.y))))
    said, true = run.predict(few.x).float(), few.y.float().cpu()
    return Predicted(said.reshape(len(said), -1), true.reshape(len(true), -1))


def carried(run: "Run", split: Split) -> Carried:
    """By a run with the task sequence, of the first windows of a split.

    A net that can go on by itself does so once it has seen its part; of another one it is its word on each next step.
    """
    assert isinstance(run.task, Sequence)
    few = split.take(torch.arange(min(_WINDOWS, len(split.y))))
    truth, net = few.y.float().cpu(), run.net
    (batch,) = run.batches(few).epoch()
    if not can_step(net) or batch.tensor.shape[-1] != run.task.dim:
        return Carried(truth, run.predict(few.x).float(), None)
    steps = truth.shape[1] - run.task.warmup + 1
    said = closed_loop(net, batch.tensor[:, : run.task.warmup], steps).float().cpu()
    squares = (said - truth[:, -steps:]).double().square().mean(2)
    return Carried(truth, said, valid_steps(squares, run.task.threshold))


def draw_numbers(run: "Run", split: Split, folder: Path) -> list[Path]:
    """predicted.png of a run with the task regress, carried.png of one with the task sequence; returns their paths."""
    if isinstance(run.task, Regress):
        answers = predicted(run, split)
        return [write_figure(answers.figure(answers.shown), folder / "predicted.png")]
    if isinstance(run.task, Sequence):
        windows = carried(run, split)
        return [write_figure(windows.figure(range(len(windows.truth))), folder / "carried.png")]
    return []


def _reach(truth: Tensor) -> tuple[float, float]:
    """Of the y axis: what is far off must not make the truth a line."""
    low, high = float(truth.min()), float(truth.max())
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def _plain(axes: Axes, *, x: str = "", y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.4, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
