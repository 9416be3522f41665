"""The figures in the report of a comparison: learning curves, and scores against costs."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bpfree.lab.compare.measure import Row
from bpfree.lab.report.html import picture
from bpfree.pictures.plots import label

COSTS = {"cpu_seconds": ("CPU seconds", 1.0), "step_memory_bytes": ("peak memory of a step, MB", 1e-6)}
"""The costs that are drawn: for each key of a row its name and the factor to its unit."""
_FEW = 10  # rows; with more, bands around the curves would hide each other


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the style of each row; after 20 rows the colours are used again, dashed and with another marker."""
    colors = colormaps["tab10" if len(rows) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    again = len(colors) if len(rows) > 10 else len(rows)
    return [
        {"color": colors[n % len(colors)], "ls": "-" if n < again else "--", "marker": "o" if n < again else "s"}
        for n in range(len(rows))
    ]


def draw_curves(rows: Sequence[Row], by: str) -> Markup:
    """Draw the validation metric of each row, the mean over its seeds.

    If there are few rows, a band shows the lowest and the highest seed.

    Args:
        rows: rows that have runs.
        by: the horizontal axis, "epoch" or "CPU seconds".
    """
    column = 0 if by == "epoch" else 1
    figure, axes = _sheet(rows)
    for row, style in zip(rows, _styles(rows), strict=True):
        x = _over_seeds(row, column, statistics.fmean)
        mean, low, high = (_over_seeds(row, 2, of) for of in (statistics.fmean, min, max))
        axes.plot(x, mean, lw=1.8, label=row["name"], **(style | {"marker": style["marker"] if len(x) == 1 else ""}))
        if len(rows) <= _FEW:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    first = rows[0]["runs"][0]
    label(axes, f"{first['watched']} {first['metric']}", x=by)
    _ticks(axes, logarithmic=by != "epoch")
    alt = f"{first['watched'].capitalize()} {first['metric']} of {len(rows)} rules over {by}, a line for each."
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11)
    return picture(figure, alt=alt)


def _over_seeds(row: Row, column: int, of: Callable[[Sequence[float]], float]) -> list[float]:
    """Return a statistic of one column of the curves over the seeds, for each epoch that all of them have.

    Args:
        row: a row that has runs.
        column: 0 for the epoch, 1 for CPU seconds, 2 for the metric.
        of: the statistic, such as `min`.
    """
    # Not strict: early stopping ends the runs of different seeds after different epochs.
    epochs = zip(*(run["curve"] for run in row["runs"]), strict=False)
    return [of([point[column] for point in points]) for points in epochs]


def draw_costs(rows: Sequence[Row], cost: str) -> Markup:
    """Draw the final score of each row, with its standard deviation, against its cost.

    Args:
        rows: rows that have runs.
        cost: a key of `COSTS`.
    """
    name, scale = COSTS[cost]
    figure, axes = _sheet(rows)
    for row, style in zip(rows, _styles(rows), strict=True):
        axes.errorbar(row[cost] * scale, row["mean"], yerr=row["std"] or 0, ms=9, label=row["name"], **style)
    first = rows[0]["runs"][0]
    label(axes, f"{first['split']} {first['metric']}", x=name)
    _ticks(axes, logarithmic=True)
    # The legend of an error bar would show a bar; its first part is the dot alone.
    handles = [container[0] for container in axes.containers]
    names = [row["name"] for row in rows]
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11)
    return picture(figure, alt=f"Final {first['metric']} of {len(rows)} rules against {name}.")


def _sheet(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """Return an empty figure that is high enough for a legend with all rows."""
    figure = Figure(figsize=(10, max(4.6, 0.27 * len(rows) + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _ticks(axes: Axes, *, logarithmic: bool) -> None:
    """Label the horizontal axis with plain numbers such as 20 and 50, so few that they do not touch."""
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()  # over more than two decades, labels at 1, 2 and 5 would touch
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
