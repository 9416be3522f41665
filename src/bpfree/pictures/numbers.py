"""Show predicted against true numbers, and how far a sequence net follows the truth on its own predictions."""

from collections.abc import Sequence as Many
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bpfree.data import Split
from bpfree.pictures.plots import BLUE, GREY, write_figure
from bpfree.pictures.trained_run import TrainedRun
from bpfree.tasks import Regress, Sequence
from bpfree.tasks.sequence import can_step, closed_loop, valid_steps

_DOTS = 500  # samples; each is one dot
_NUMBERS = 6  # most of the D numbers that get a panel
_WINDOWS, _COMPONENTS = 3, 3  # most windows, and most of the D values of each
_MARGIN = 0.25  # of the range of the truth; a prediction farther off leaves the panel


class NumberPredictions(NamedTuple):
    """Predicted and true numbers of N samples, in the units of the data.

    Attributes:
        predicted: [N, D].
        true: [N, D].
    """

    predicted: Tensor
    true: Tensor

    def figure(self, numbers: Many[int]) -> Figure:
        """Draw a panel for each of some numbers: the prediction upwards, the true value to the right.

        Args:
            numbers: indices below D.
        """
        figure = Figure(figsize=(4.4 * len(numbers), 4.2), layout="constrained")
        for axes, d in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
            predicted, true = self.predicted[:, d].numpy(), self.true[:, d].numpy()
            ends = float(true.min()), float(true.max())
            axes.plot(ends, ends, color=GREY, lw=1.0)
            axes.plot(true, predicted, ".", color=BLUE, alpha=0.6, markeredgewidth=0)
            axes.set_ylim(*_limits(self.true[:, d]))
            which = f" of number {d}" if self.true.shape[1] > 1 else ""
            _style(axes, x=f"true value{which}", y="predicted")
        return figure

    @property
    def shown(self) -> range:
        """Indices of the numbers that pictures show: the first six of D."""
        return range(min(self.true.shape[1], _NUMBERS))


class Rollout(NamedTuple):
    """Windows of a sequence and what a net predicts for them, for N windows of T steps.

    Attributes:
        truth: [N, T, D], the values that were to be predicted.
        predicted: [N, K, D], predictions of the last K of these steps.
        valid: [N], how many of the K predictions are close to the truth. None if the net reads the truth at each step
            because it cannot go on by its own predictions.
    """

    truth: Tensor
    predicted: Tensor
    valid: Tensor | None

    def figure(self, windows: Many[int]) -> Figure:
        """Draw a column for some of the windows, with a panel for each of the first three values.

        Args:
            windows: indices below N.
        """
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
        steps, count = self.truth.shape[1], self.predicted.shape[1]
        # truth[0] is the value at step 1: at step t the net reads the value of step t and predicts that of step t + 1.
        first = steps - count + 1
        axes.plot(range(1, steps + 1), self.truth[window, :, d].numpy(), color=GREY, lw=1.8, label="truth")
        predicted = self.predicted[window, :, d].numpy()
        axes.plot(range(first, steps + 1), predicted, color=BLUE, lw=1.4, label="prediction")
        if self.valid is not None:
            axes.axvline(first - 1, color=GREY, lw=1.2, ls="--", label="reads its own predictions from here")
            axes.axvline(first - 1 + int(self.valid[window]), color=BLUE, lw=1.2, ls=":", label="valid until here")
        axes.set_ylim(*_limits(self.truth[window, :, d]))
        _style(axes, y="value" if self.truth.shape[2] == 1 else f"value {d}")


def predict_numbers(run: TrainedRun, split: Split) -> NumberPredictions:
    """Predict the numbers of the first 500 samples of a split.

    Args:
        run: its task is regress.
        split: raw samples and their numbers.
    """
    few = split.take(torch.arange(min(_DOTS, len(split.y))))
    predicted, true = run.predict(few.x).float(), few.y.float().cpu()
    return NumberPredictions(predicted.reshape(len(predicted), -1), true.reshape(len(true), -1))


def rollout(run: TrainedRun, split: Split) -> Rollout:
    """Predict the first three windows of a split.

    A net that can go on by its own predictions reads the warm-up of a window and then does so. Another net reads the
    true values, and the rollout holds its prediction of each next step.

    Args:
        run: its task is sequence.
        split: windows.
    """
    assert isinstance(run.task, Sequence)
    few = split.take(torch.arange(min(_WINDOWS, len(split.y))))
    truth, net = few.y.float().cpu(), run.trainer.net
    (batch,) = run.batches(few).epoch()
    # To go on, the net's output must be its next input, so both need the same width.
    if not can_step(net) or batch.tensor.shape[-1] != run.task.dim:
        return Rollout(truth, run.predict(few.x).float(), None)
    steps = truth.shape[1] - run.task.warmup + 1
    predicted = closed_loop(net, batch.tensor[:, : run.task.warmup], steps).float().cpu()  # [N, K, D]
    squares = (predicted - truth[:, -steps:]).double().square().mean(2)
    return Rollout(truth, predicted, valid_steps(squares, run.task.threshold))


def draw_numbers(run: TrainedRun, split: Split, folder: Path) -> list[Path]:
    """Draw predicted.png if the task is regress, or rollout.png if it is sequence.

    Args:
        run: other tasks get no picture.
        split: samples to predict.
        folder: gets the picture.

    Returns:
        The paths of the pictures.
    """
    if isinstance(run.task, Regress):
        predictions = predict_numbers(run, split)
        return [write_figure(predictions.figure(predictions.shown), folder / "predicted.png")]
    if isinstance(run.task, Sequence):
        windows = rollout(run, split)
        return [write_figure(windows.figure(range(len(windows.truth))), folder / "rollout.png")]
    return []


def _limits(truth: Tensor) -> tuple[float, float]:
    """Return the limits of the y axis by the truth alone: predictions far off must not flatten the truth to a line."""
    low, high = float(truth.min()), float(truth.max())
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def _style(axes: Axes, *, x: str = "", y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.4, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
