"""Two pictures of a search: the importance of the parameters, and the parameters of each trial."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bpfree.pictures.plots import BLUE, ORANGE, label, write_figure
from bpfree.runs.markers import Choice, Log, Marker

_ABSENT = object()  # stands for the value of a parameter that a trial does not have
_BELOW = -0.12  # height of the lines of such trials, below the axis
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
_TICKS = 5
_WIDE = 1000  # largest value / smallest value; above it the axis is logarithmic, or one bad trial would hide the rest


def plot_importance(importances: Mapping[str, float], metric: str, path: Path) -> Path:
    """Draw a bar for each parameter, the most important on top.

    Args:
        importances: the importance of each parameter; empty if nobody can tell.
        metric: the metric that trials are judged by.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 1.6 + 0.5 * max(len(importances), 2)), layout="constrained")
    axes = figure.subplots()
    shown = dict(sorted(importances.items(), key=lambda item: item[1]))
    bars = axes.barh(list(shown), list(shown.values()), color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=12)
    axes.set_xlim(0, 1.1 * max([*shown.values(), 1e-9]))
    label(axes, f"importance of the parameters for {metric}", x="importance (the sum is 1)")
    axes.spines[["top", "right"]].set_visible(False)
    if not shown:
        axes.text(0.5, 0.5, "cannot tell: too few different values", transform=axes.transAxes, ha="center", fontsize=12)
    return write_figure(figure, path)


def plot_parallel(ranked: Sequence[Mapping[str, Any]], markers: Mapping[str, Marker], metric: str, path: Path) -> Path:
    """Draw a line for each trial through its parameters to its value (parallel coordinates).

    Args:
        ranked: trials that have a value, best first.
        markers: the markers by the name of the parameter.
        metric: the metric that trials are judged by.
        path: the PNG to write.
    """
    names = [name for name in markers if any(name in trial["params"] for trial in ranked)]
    values = [trial["value"] for trial in ranked]
    scales = [*(_scale(markers[name]) for name in names), _value_scale(values)]
    figure = Figure(figsize=(3 + 2.4 * len(scales), 6.5), layout="constrained")
    axes = figure.subplots()
    ranks = Normalize(1, max(len(ranked), 2))
    for place, trial in reversed(list(enumerate(ranked, start=1))):  # the best last, so that it lies on top
        points = [*(trial["params"].get(name, _ABSENT) for name in names), trial["value"]]
        heights = [scale.height(value) for scale, value in zip(scales, points, strict=True)]
        color = ORANGE if place == 1 else colormaps["viridis"](ranks(place))
        axes.plot(heights, color=color, linewidth=3 if place == 1 else 1.2, alpha=1 if place == 1 else 0.7)
    axes.set_title(f"{len(ranked)} trials; the best, trial {ranked[0]['number']}, is the thick line", fontsize=15)
    for position, scale in enumerate(scales):
        _draw_axis(axes, position, scale)
    for position, name in enumerate(names):
        if any(name not in trial["params"] for trial in ranked):
            axes.text(position + 0.04, _BELOW, "not set", fontsize=11, va="center", zorder=5, bbox=_PAPER)
    axes.set_xticks(range(len(scales)), [*map(_broken, names), metric], fontsize=12)
    axes.set_xlim(-0.2, len(scales) - 0.5)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(ranks, "viridis"), ax=axes, shrink=0.6)
    bar.set_label("rank of the trial", fontsize=12)
    bar.ax.invert_yaxis()
    return write_figure(figure, path)


@dataclass
class _Scale:
    """A scale that puts values on an axis from 0 to 1."""

    place: Callable[[Any], float]
    ticks: Sequence[Any]

    @classmethod
    def between(cls, low: float, high: float, *, log: bool = False) -> "_Scale":
        """Return a scale for numbers between two ends, with ticks; at powers of ten if it is logarithmic."""
        ends = (log10(low), log10(high)) if log else (low, high)
        width = (ends[1] - ends[0]) or 1.0
        marks: list[float] = [ends[0] + width * k / (_TICKS - 1) for k in range(_TICKS)] if high > low else [ends[0]]
        if log and 2 <= ends[1] - ends[0] <= 2 * _TICKS:  # powers of ten
            marks = [float(k) for k in range(ceil(ends[0] - 1e-9), floor(ends[1] + 1e-9) + 1)]
        return cls(
            lambda value: ((log10(value) if log else value) - ends[0]) / width,
            [10**mark if log else mark for mark in marks],
        )

    def height(self, value: Any) -> float:
        """Return the height of a value; trials without this parameter lie below the axis."""
        return _BELOW if value is _ABSENT else self.place(value)


def _value_scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    return _Scale.between(low, high, log=low > 0 and high > _WIDE * low)


def _scale(marker: Marker) -> _Scale:
    if isinstance(marker, Choice):
        labels = marker.labels
        return _Scale(lambda value: labels.index(value) / max(len(labels) - 1, 1), labels)
    return _Scale.between(marker.low, marker.high, log=isinstance(marker, Log))


def _draw_axis(axes: Axes, position: int, scale: _Scale) -> None:
    axes.plot([position, position], [0, 1], color="black", linewidth=1, zorder=4)
    for tick in scale.ticks:
        text = f"{tick:.3g}" if isinstance(tick, float) else str(tick)
        axes.text(position + 0.04, scale.height(tick), text, fontsize=11, va="center", zorder=5, bbox=_PAPER)


def _broken(name: str) -> str:
    """Return a dotted path broken into several lines."""
    return name.replace(".", ".\n").replace("=", "=\n")
