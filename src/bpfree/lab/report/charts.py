"""Figures for a page. Each has one panel, so that a phone can show one figure below the other."""

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
_NAMED = 12  # lines; if there are more, the legend names only the first and the last


def learning_curves(history: Sequence[Record], *, best_epoch: int | None = None) -> dict[str, Figure]:
    """Draw each metric of a run over the epochs, in training and in validation.

    Args:
        history: records of the epochs, as in `Recorded.history`.
        best_epoch: the epoch whose weights are the result; None if it is the last one. It gets a vertical line.

    Returns:
        One figure for each metric of the whole net, by its name.
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
    """Draw each metric of several runs in one panel: in validation, or in training for a run without validation.

    Args:
        histories: records of the epochs, by the name of the run.
        over: the horizontal axis, "epoch" or "seconds" of training.

    Returns:
        One figure for each metric of the whole net, by its name.
    """
    figures = {}
    for metric in _metrics([record for history in histories.values() for record in history]):
        figure, axes = _panel(x="epoch" if over == "epoch" else "seconds of training", y=metric)
        for number, (name, history) in enumerate(histories.items()):
            split = "validation" if _points(history, over, "validation", metric) else "train"
            label = name if split == "validation" else f"{name} (train)"
            style = _STYLES[number // 10 % len(_STYLES)]  # matplotlib has ten colours: the eleventh run gets dashes
            _line(axes, _points(history, over, split, metric), label=label, ls=style, color=f"C{number % 10}")
        if over == "seconds":  # the times of rules differ by factors, so only a logarithmic axis shows all of them
            axes.set_xscale("log")
        _scale(axes, metric)
        _legend(figure, axes)
        figures[metric] = figure
    # A record may lack the axis, such as the seconds. Its panel would be empty.
    return {metric: figure for metric, figure in figures.items() if figure.axes[0].lines}


def tracked_curves(records: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    """Draw what trackers measured over the steps of training.

    Args:
        records: measurements, as in `Recorded.tracked`.

    Returns:
        Triples: the name of the tracker, the quantity, and its figure. A figure has one line for each layer, dark for
        the first layer and light for the last. The quantities of the tracker "cost" have one figure each.
    """
    by_tracker: dict[str, list[Record]] = {}
    for record in records:
        by_tracker.setdefault(record["tracker"], []).append(record)
    shown: list[tuple[str, str, Figure]] = []
    for tracker, measured in by_tracker.items():
        layers = list(dict.fromkeys(layer for record in measured for layer in record["values"]))
        kind = TRACKERS.get(tracker)  # None for a tracker of the user, or of another version
        of_layers = kind is None or bool(kind.unit) or tracker != "cost"
        for group in [layers] if of_layers else [[layer] for layer in layers]:
            if group:
                quantity = (kind and kind.unit) or tracker if of_layers else group[0]
                shown.append((tracker, quantity, _layers(measured, group, quantity)))
    return shown


def _layers(records: Sequence[Record], layers: Sequence[str], quantity: str) -> Figure:
    """Draw one quantity over the steps, a line for each layer.

    Args:
        records: measurements of one tracker.
        layers: names of layers, from the first to the last.
        quantity: the name of the vertical axis; bytes are shown in MB.
    """
    scale, unit = (1e-6, quantity.replace("_bytes", " (MB)")) if quantity.endswith("_bytes") else (1.0, quantity)
    figure, axes = _panel(x="step", y=unit.replace("_", " "))
    for number, layer in enumerate(layers):
        points = [(r["step"], scale * r["values"][layer]) for r in records if layer in r["values"]]
        # 0.9 and not 1: the end of this map is a yellow that is hard to see on light paper.
        color = colormaps["viridis"](0.9 * number / max(len(layers) - 1, 1)) if len(layers) > 1 else BLUE
        named = len(layers) <= _NAMED or number in (0, len(layers) - 1)
        _line(axes, points, label=layer if named else None, color=color)
    if len(layers) > 1:
        _legend(figure, axes)
    return figure


def _metrics(history: Sequence[Record]) -> list[str]:
    """Return the metrics of the whole net, in the order in which they first appear.

    "loss/fc1" is the loss of one unit. Balanced accuracy and macro F1 are left out: their curves are close to that of
    accuracy.
    """
    names = [name for record in history for split in ("validation", "train") for name in record[split]]
    return [name for name in dict.fromkeys(names) if "/" not in name and name not in BY_CLASS]


def _points(history: Sequence[Record], x: str, split: str, metric: str) -> list[tuple[float, float]]:
    """Return the points (x, metric) of the epochs that have both.

    Args:
        history: records of the epochs.
        x: "epoch" or "seconds".
        split: "train" or "validation".
        metric: the name of a metric.
    """
    return [(record[x], record[split][metric]) for record in history if x in record and metric in record[split]]


def _panel(*, x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure with one empty panel, and its axes with labels."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=plain(y))
    axes.grid(alpha=0.4, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if x in ("epoch", "step"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _line(axes: Axes, points: Sequence[tuple[float, float]], *, label: str | None, **style: Any) -> None:
    """Draw a line through points, or a dot if there is only one; nothing if there is none."""
    if points:
        text = None if label is None else plain(label)  # a "$" in the name of a run would begin a formula
        axes.plot(*zip(*points, strict=True), label=text, lw=1.8, marker="o" if len(points) == 1 else "", **style)


def _scale(axes: Axes, metric: str) -> None:
    """Draw a positive loss on a logarithmic axis, where both its first fall and its late changes are visible."""
    # A loss of 0 or below, as the log-likelihood of a density, has no logarithm.
    lowest = min((float(np.min(line.get_ydata())) for line in axes.lines), default=0.0)
    if metric == "loss" and lowest > 0:
        axes.set_yscale("log")


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the panel, and make the figure higher by the legend's rows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # About 48 letters fit into a row at this size of the figure and font; four are taken by the line's sample.
        columns = max(1, min(4, 48 // (4 + max(map(len, labels)))))
        rows = -(-len(labels) // columns)  # rounded up
        figure.set_figheight(_SIZE[1] + 0.2 * rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
