"""Figures for a page. Each has one panel, so that a phone can show one figure below the other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bpfree.pictures.labels import SIZE, Named, label_ends, labelled_panel
from bpfree.pictures.plots import BLUE, GREY, LINES, plain
from bpfree.pictures.scales import linear_scale, range_of_curves, value_scale
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import MEASURES, Record

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
        points = {split: _points(history, "epoch", split, metric) for split in ("train", "validation")}
        values = [y for each in points.values() for _, y in each]
        if not values:
            continue
        for split, style, color in (("train", "--", GREY), ("validation", "-", BLUE)):
            # A hollow and larger dot for training: with one epoch both may lie at the same place.
            dot = {"ms": 9, "markerfacecolor": "white"} if split == "train" else {}
            _line(axes, points[split], label=split, ls=style, color=color, **dot)
        if best_epoch:
            axes.axvline(best_epoch, color=GREY, lw=0.8, ls=":", label="best epoch")
        value_scale(axes, "y", min(values), max(values), log=metric == "loss")
        if len(history) == 1:
            axes.set_xlim(history[0]["epoch"] - 1, history[0]["epoch"] + 1)
        _legend(figure, axes)
        figures[metric] = figure
    return figures


def overlaid_curves(histories: Mapping[str, Sequence[Record]], *, over: str) -> dict[str, Figure]:
    """Draw each metric of several runs in one panel: in validation, or in training for a run without validation.

    Each line has the name of its run at its end. Early values may be cut off; see `range_of_curves`.

    Args:
        histories: records of the epochs, by the name of the run. The runs have the same data and task.
        over: the horizontal axis, "epoch" or "seconds" of training.

    Returns:
        One figure for each metric of the whole net, by its name.
    """
    every = _metrics([record for history in histories.values() for record in history])
    figures = ((metric, _overlaid(histories, over, metric)) for metric in every)
    return {metric: figure for metric, figure in figures if figure is not None}


def _overlaid(histories: Mapping[str, Sequence[Record]], over: str, metric: str) -> Figure | None:
    """Draw one metric of several runs; None if no run has it, or no run has the axis."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, history in histories.items():
        validated = _points(history, over, "validation", metric)
        points = validated or _points(history, over, "train", metric)
        if points:
            lines[plain(name if validated else f"{name} (train)")] = points
    if not lines:
        return None
    figure, axes = labelled_panel(list(lines))
    axes.set_xlabel("epoch" if over == "epoch" else "seconds of training", fontsize=SIZE)
    axes.set_ylabel(plain(metric), fontsize=SIZE)
    ends = []
    for number, (name, points) in enumerate(lines.items()):
        color, style = LINES[number % len(LINES)], _STYLES[number // len(LINES) % len(_STYLES)]
        _line(axes, points, label=None, ls=style, color=color)
        ends.append(Named(*points[-1], name, color))
    xs = [x for points in lines.values() for x, _ in points]
    shown = range_of_curves([[y for _, y in points] for points in lines.values()])
    value_scale(axes, "y", *shown, log=metric == "loss")
    if over == "epoch":
        axes.set_xlim(min(xs) - 0.1, max(xs) + 0.1)
        linear_scale(axes, "x", integer=True)
    else:  # the times of rules differ by factors, so only a logarithmic axis shows all of them
        value_scale(axes, "x", min(xs), max(xs))
    label_ends(axes, ends)
    return figure


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
        kind = MEASURES.get(tracker)  # None for a tracker of the user, or of another version
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
    """Return the points (x, metric) of the epochs that have both as finite numbers.

    Args:
        history: records of the epochs.
        x: "epoch" or "seconds".
        split: "train" or "validation".
        metric: the name of a metric.
    """
    points = [(record[x], record[split][metric]) for record in history if x in record and metric in record[split]]
    return [point for point in points if all(map(math.isfinite, point))]


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
        look: dict[str, Any] = {"lw": 1.8, "marker": "o" if len(points) == 1 else ""}
        axes.plot(*zip(*points, strict=True), label=text, **look | style)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the panel, and make the figure higher by the legend's rows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # About 48 letters fit into a row at this size of the figure and font; four are taken by the line's sample.
        columns = max(1, min(4, 48 // (4 + max(map(len, labels)))))
        rows = -(-len(labels) // columns)  # rounded up
        figure.set_figheight(_SIZE[1] + 0.2 * rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
