"""Figures in words and numbers that people read."""

from typing import Any

from bpfree.lab.report.records import is_number


def number(value: Any) -> str:
    """Counts with commas, other numbers with four digits; a dash for what is none."""
    if not is_number(value):
        return "\u2013"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def seconds(value: Any) -> str:
    """A time span."""
    if not is_number(value):
        return "\u2013"
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def megabytes(value: Any) -> str:
    """An amount of memory."""
    return f"{value / 1e6:,.2f} MB" if is_number(value) else "\u2013"
