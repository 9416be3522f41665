"""A forest plot: the difference of each rule from the baseline of its net, with its confidence interval."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bpfree.lab.compare.curves import FONT, WIDTH
from bpfree.lab.compare.measure import Row
from bpfree.pictures.labels import text_width
from bpfree.pictures.plots import plain
from bpfree.pictures.scales import linear_scale

GREEN, RED, UNSURE = "#007a56", "#c8321f", "#717581"
_ROW = 0.205  # inches
_BELOW, _ABOVE = 0.62, 0.34  # inches
_WIDE = 8.0  # largest end of an interval / middle one; above it the far part of the axis is logarithmic


def draw_forest(rows: Sequence[Row], net: str) -> Figure | None:
    """Draw the differences of the rows of one net from their baseline, best first.

    Full dots in green or red stand for differences that are shown, hollow grey dots for all others.

    Args:
        rows: trained rows of one net.
        net: the net, for the title.

    Returns:
        The figure; None if no row has a difference.
    """
    better = -1 if rows[0]["metric"] == "loss" else 1
    shown = sorted((row for row in rows if "difference" in row), key=lambda row: -better * row["difference"])
    if not shown:
        return None
    points = 100 if rows[0]["metric"] == "accuracy" else 1
    height = _ROW * len(shown) + _BELOW + _ABOVE
    figure = Figure(figsize=(WIDTH, height))
    names = [plain(row["name"]) for row in shown]
    left = min(max(text_width(name, FONT) for name in names) / 72 + 0.15, WIDTH / 2)
    axes = figure.add_axes(
        (left / WIDTH, _BELOW / height, (WIDTH - left - 0.15) / WIDTH, 1 - (_BELOW + _ABOVE) / height)
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), names, fontsize=FONT)
    axes.axvline(0, color="black", lw=0.9)
    for at, row in enumerate(shown):
        _draw(axes, at, row, points)
    _scale(axes, shown, points)
    baseline = next((row["baseline"] for row in shown if row.get("baseline")), "the baseline")
    axes.set_title(plain(net), fontsize=FONT + 1.5, loc="left", x=-left / (WIDTH - left - 0.15))
    unit = "points of accuracy" if points == 100 else rows[0]["metric"]
    side = "right is better" if better > 0 else "left is better"
    axes.set_xlabel(
        plain(f"difference from {baseline}, {unit} ({side})"), fontsize=FONT, x=0.5 - left / 2 / (WIDTH - left)
    )
    axes.tick_params(axis="x", labelsize=FONT - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _draw(axes: Axes, at: int, row: Row, points: int) -> None:
    """Draw the dot and the interval of a row."""
    color = {"better": GREEN, "worse": RED}.get(row["verdict"], UNSURE)
    # An interval of two nets, as with one seed, says nothing about rules: it is thin.
    for key, width in (("interval", 1.8), ("interval_of_nets", 0.7)):
        if key in row:
            low, high = (points * end for end in row[key])
            axes.plot([low, high], [at, at], color=color, lw=width, solid_capstyle="butt")
    style: dict[str, Any] = {"markerfacecolor": "white" if color == UNSURE else color, "markeredgewidth": 1.3}
    axes.plot([points * row["difference"]], [at], "o", ms=5, color=color, **style)


def _scale(axes: Axes, rows: Sequence[Row], points: int) -> None:
    """Scale the horizontal axis; where some differences are many times as large as the others, its far part is log."""
    intervals: list[list[float]] = [row.get("interval") or row.get("interval_of_nets") or [] for row in rows]
    ends = [
        points * end for row, interval in zip(rows, intervals, strict=True) for end in (row["difference"], *interval)
    ]
    largest = max(map(abs, ends)) or 1.0
    middle = sorted(map(abs, ends))[len(ends) // 2]
    low, high = min(0.0, *ends), max(0.0, *ends)
    if len(rows) > 2 and middle > 0 and largest > _WIDE * middle:
        threshold = 10.0 ** math.floor(math.log10(middle))
        axes.set_xscale("symlog", linthresh=threshold, linscale=1.0)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(threshold, low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlim(min(1.25 * low, -0.1 * threshold), max(1.25 * high, 0.1 * threshold))
    else:
        margin = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        linear_scale(axes, "x")


def _ticks(threshold: float, low: float, high: float) -> list[float]:
    """Return the numbers on an axis that is linear between -threshold and threshold and logarithmic beyond."""
    powers = range(math.ceil(math.log10(max(-low, high, threshold) / threshold)) + 1)
    sizes = [threshold * 10**power * step for power in powers for step in (1, 3)]
    return [0.0, *(sign * size for sign in (-1, 1) for size in sizes if low <= sign * size <= high)]
