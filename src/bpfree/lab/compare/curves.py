"""Learning curves of a comparison: a panel for each family of rules, with the baseline and the controls in grey."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bpfree.lab.compare.families import Panel, Style
from bpfree.lab.compare.measure import Row
from bpfree.pictures.labels import SIZE, Named, label_ends, labelled_panel
from bpfree.pictures.plots import plain
from bpfree.pictures.scales import linear_scale, range_of_curves, value_scale

WIDTH = 4.8  # inches, of every figure of a comparison: a phone can show it without scrolling
FONT = SIZE


class Curve(NamedTuple):
    """The learning curve of a row: means over the seeds, and the lowest and highest seed.

    Attributes:
        x: epochs, or CPU seconds.
        mean: error in %, or loss.
        low: of the best seed.
        high: of the worst seed.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw_curves(panel: Panel, by: str) -> Figure:
    """Draw the learning curves of a panel: the mean over the seeds, and a band from the best seed to the worst.

    Lines are labelled at their ends. Early values may be cut off; see `range_of_curves`.

    Args:
        panel: trained rows of one net.
        by: the horizontal axis, "epoch" or "CPU seconds".
    """
    rows = [*panel.grey, *panel.rows]
    styles, curves = panel.styles, {row["name"]: curve_of(row, by) for row in rows}
    figure, axes = labelled_panel([plain(name) for name in panel.named], width=WIDTH)
    for name, curve in curves.items():
        _draw(axes, curve, styles[name], band=any(row["name"] == name for row in panel.rows))
    _limit(axes, [curves[name] for name in panel.named], by)
    axes.set_xlabel(by, fontsize=FONT)
    axes.set_title(plain(panel.title), fontsize=FONT + 1.5, loc="left")
    first = rows[0]["runs"][0]
    axes.set_ylabel(f"{first['watched']} {name_of_error(first['metric'])}", fontsize=FONT)
    ends = [Named(curves[name].x[-1], curves[name].mean[-1], plain(name), styles[name].color) for name in panel.named]
    label_ends(axes, ends, size=FONT)
    return figure


def curve_of(row: Row, by: str) -> Curve:
    """Return the learning curve of a row over the epochs that all its seeds have.

    Args:
        row: a trained row of the record.
        by: "epoch" or "CPU seconds".
    """
    # Not strict: early stopping ends the runs of different seeds after different epochs.
    epochs = list(zip(*(run["curve"] for run in row["runs"]), strict=False))
    column = 0 if by == "epoch" else 1
    x = [statistics.fmean(point[column] for point in points) for points in epochs]
    errors = [[error(point[2], row["metric"]) for point in points] for points in epochs]
    return Curve(x, *(_of_each(of, errors) for of in (statistics.fmean, min, max)))


def _of_each(of: Callable[[Sequence[float]], float], errors: Sequence[Sequence[float]]) -> list[float]:
    """Return a statistic of the seeds for each epoch."""
    return [of(values) for values in errors]


def error(value: float, metric: str) -> float:
    """Return an accuracy as error in %; a loss as it is. Lower is better for both.

    Args:
        value: of the metric.
        metric: "accuracy" or "loss".

    Example:
        >>> round(error(0.97, "accuracy"), 6), error(0.5, "loss")
        (3.0, 0.5)
    """
    return 100 * (1 - value) if metric == "accuracy" else value


def name_of_error(metric: str) -> str:
    """Return the name of what `error` gives, for an axis.

    Args:
        metric: "accuracy" or "loss".
    """
    return "error, %" if metric == "accuracy" else metric


def _draw(axes: Axes, curve: Curve, style: Style, *, band: bool) -> None:
    """Draw a curve, or a dot if there is only one epoch."""
    alone = len(curve.x) == 1
    axes.plot(curve.x, curve.mean, color=style.color, ls=style.dashes, lw=style.width, marker="o" if alone else "")
    if band and not alone:
        axes.fill_between(curve.x, curve.low, curve.high, color=style.color, alpha=0.15, lw=0)


def _limit(axes: Axes, curves: Sequence[Curve], by: str) -> None:
    """Set the limits of both axes."""
    value_scale(axes, "y", *range_of_curves([curve.mean for curve in curves]))
    first, last = min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)
    if by == "epoch":
        axes.set_xlim(first if last > first else first - 1, last if last > first else first + 1)
        linear_scale(axes, "x", integer=True)
    else:
        value_scale(axes, "x", first, last)


def is_cut(panel: Panel) -> bool:
    """Return True if a curve of a panel begins above its axis.

    Args:
        panel: trained rows of one net.
    """
    rows = [row for row in [*panel.grey, *panel.rows] if row["name"] in panel.named]
    means = [curve_of(row, "epoch").mean for row in rows]
    return max(map(max, means)) > range_of_curves(means)[1]
