"""Axes with few, plain numbers that do not touch each other: logarithmic ones, and linear ones without an offset."""

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

_LOG_FROM = 4.0  # largest value / smallest value of an axis; below it a logarithmic axis would not help
_LONG = 5  # values; curves of fewer ones are shown whole
_MOST = 6  # labels of a logarithmic axis; powers of ten alone may be one more


def value_scale(axes: Axes, which: Literal["x", "y"], low: float, high: float, *, log: bool = True) -> None:
    """Scale an axis from `low` to `high`: logarithmically if both are above 0 and more than a factor of four apart.

    Args:
        axes: the panel.
        which: the horizontal axis "x" or the vertical axis "y".
        low: the smallest value that must be seen.
        high: the largest one.
        log: False for a linear axis in any case.
    """
    if log and low > 0 and high > _LOG_FROM * low:
        log_scale(axes, which, low / 1.12, high * 1.12)
        return
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set(**{f"{which}lim": (low - margin, high + margin)})
    linear_scale(axes, which)


def range_of_curves(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the smallest and the largest value that a panel with these curves should show.

    Several curves are shown from a third of their length on, if the values before would take two thirds of the panel:
    the first epoch of the worst rule must not press all other curves together. Curves of fewer than five values are
    shown whole.

    Args:
        curves: the values of each curve in order; each has one value or more.

    Example:
        >>> range_of_curves([[2.3, 0.4, 0.3, 0.3, 0.3], [0.5, 0.4, 0.2, 0.2, 0.2]])
        (0.2, 0.4)
        >>> range_of_curves([[2.3, 0.4, 0.3, 0.3, 0.3]])
        (0.3, 2.3)
    """
    every = [value for curve in curves for value in curve]
    late = [value for curve in curves for value in curve[len(curve) // 3 if len(curve) >= _LONG else 0 :]]
    wide, narrow = max(every) - min(every), max(late) - min(late)
    shown = late if len(curves) > 1 and wide > 3 * narrow > 0 else every
    return min(shown), max(shown)


def log_scale(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Make an axis logarithmic, with two to seven labels such as 0.5, 1, 2 and 5.

    Args:
        axes: the panel.
        which: the horizontal axis "x" or the vertical axis "y".
        low: the lower limit, above 0.
        high: the upper limit, above `low`.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value < 1e6 else f"{value:.0e}"))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Return two to seven round numbers between two limits: 1, 2 and 5 times powers of ten, or fewer or more if needed.

    Args:
        low: the lower limit, above 0.
        high: the upper limit, above `low`.

    Example:
        >>> log_ticks(0.8, 30.0)
        [1.0, 2.0, 5.0, 10.0, 20.0]
        >>> log_ticks(0.001, 9000.0)
        [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        exact = [float(f"{step}e{power}") for power in powers for step in steps]
        ticks = [tick for tick in exact if low <= tick <= high]
        if len(ticks) <= _MOST:
            break
    if len(ticks) < 2:  # less than a factor of five: evenly spaced numbers
        return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks[:: 1 + (len(ticks) - 1) // (_MOST + 1)]


def linear_scale(axes: Axes, which: Literal["x", "y"], *, integer: bool = False) -> None:
    """Let an axis show its numbers in full: without an offset such as "+1e8" at its end.

    Args:
        axes: the panel.
        which: the horizontal axis "x" or the vertical axis "y".
        integer: True if only whole numbers make sense, as for epochs.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1 if integer else 2))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
