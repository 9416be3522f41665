"""Figures for a page: one panel each, so that a phone shows them one below the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bpfree.pictures.plots import BLUE, GREY, plain
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import TRACKERS, Record

_SIZE = (4.8, 3.2)
_STYLES = ("-", "--", ":", "-.")
_NAMED = 12  # lines; of more, a legend names the first and the last


def learning_curves(history: Sequence[Record], *, best_epoch: int | None = None) -> dict[str, Figure]:
    """By metric: its values over the epochs, in training and validation.

    Args:
        history: records of the epochs.
        best_epoch: marked, if its weights are the result.
    """
    figures = {}
    for metric in _metrics(history):
        figure, axes = _panel(x="epoch", y=metric)
        for split, style, color in (("train", "--", GREY), ("validation", "-", BLUE)):
            _line(axes, _points(history, "epoch", split, metric), label=split, ls=style, color=color)
        _scale(axes, metric)
        if best_epoch:
            axes.axvline(best_epoch, color=GREY, lw=0.8, ls=":", label="best epoch")
        _legend(figure, axes)
        figures[metric] = figure
    return figures


def overlaid_curves(histories: Mapping[str, Sequence[Record]], *, over: str) -> dict[str, Figure]:
    """By metric: its values of several runs in validation, or in training where there is none.

    Args:
        histories: records of the epochs by the name of the run.
        over: "epoch" or "seconds".
    """
    figures = {}
    for metric in _metrics([record for history in histories.values() for record in history]):
        figure, axes = _panel(x="epoch" if over == "epoch" else "seconds of training", y=metric)
        for number, (name, history) in enumerate(histories.items()):
            split = "validation" if _points(history, over, "validation", metric) else "train"
            label = name if split == "validation" else f"{name} (train)"
            style = _STYLES[number // 10 % len(_STYLES)]
            _line(axes, _points(history, over, split, metric), label=label, ls=style, color=f"C{number % 10}")
        if over == "seconds":
            axes.set_xscale("log")
        _scale(axes, metric)
        _legend(figure, axes)
        figures[metric] = figure
    return {metric: figure for metric, figure in figures.items() if figure.axes[0].lines}


def tracked_curves(records: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    """Tracker, what is shown of it, and a figure: over the steps, a line for each layer, the first one dark."""
    by_tracker: dict[str, list[Record]] = {}
    for record in records:
        by_tracker.setdefault(record["tracker"], []).append(record)
    shown: list[tuple[str, str, Figure]] = []
    for tracker, own in by_tracker.items():
        layers = list(dict.fromkeys(layer for record in own for layer in record["values"]))
        known = TRACKERS.get(tracker)
        of_layers = known is None or bool(known.unit) or tracker != "cost"
        for group in [layers] if of_layers else [[layer] for layer in layers]:
            if group:
                what = (known and known.unit) or tracker if of_layers else group[0]
                shown.append((tracker, what, _layers(own, group, what)))
    return shown


def _layers(records: Sequence[Record], layers: Sequence[str], what: str) -> Figure:
    scale, unit = (1e-6, what.replace("_bytes", " (MB)")) if what.endswith("_bytes") else (1.0, what)
    figure, axes = _panel(x="step", y=unit.replace("_", " "))
    for number, layer in enumerate(layers):
        points = [(r["step"], scale * r["values"][layer]) for r in records if layer in r["values"]]
        color = colormaps["viridis"](0.9 * number / max(len(layers) - 1, 1)) if len(layers) > 1 else BLUE
        named = len(layers) <= _NAMED or number in (0, len(layers) - 1)
        _line(axes, points, label=layer if named else None, color=color)
    if len(layers) > 1:
        _legend(figure, axes)
    return figure


def _metrics(history: Sequence[Record]) -> list[str]:
    """Of the whole net; "loss/fc1" is that of a unit. Those in BY_CLASS would draw accuracy twice more."""
    found = [name for record in history for split in ("validation", "train") for name in record[split]]
    return [name for name in dict.fromkeys(found) if "/" not in name and name not in BY_CLASS]


def _points(history: Sequence[Record], x: str, split: str, metric: str) -> list[tuple[float, float]]:
    return [(record[x], record[split][metric]) for record in history if x in record and metric in record[split]]


def _panel(*, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=plain(y))
    axes.grid(alpha=0.4, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if x in ("epoch", "step"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _line(axes: Axes, points: Sequence[tuple[float, float]], *, label: str | None, **style: Any) -> None:
    if points:
        text = None if label is None else plain(label)
        axes.plot(*zip(*points, strict=True), label=text, lw=1.8, marker="o" if len(points) == 1 else "", **style)


def _scale(axes: Axes, metric: str) -> None:
    """A loss that is positive is seen best by its order of magnitude."""
    lowest = min((float(np.min(line.get_ydata())) for line in axes.lines), default=0.0)
    if metric == "loss" and lowest > 0:
        axes.set_yscale("log")


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the panel, which keeps its height whatever the names."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(4, 48 // (4 + max(map(len, labels)))))
        rows = -(-len(labels) // columns)
        figure.set_figheight(_SIZE[1] + 0.2 * rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
