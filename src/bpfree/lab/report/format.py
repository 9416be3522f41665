"""Numbers, times and amounts of memory as text for people."""

from collections.abc import Mapping
from typing import Any

from bpfree.disk.plain import is_number


def number(value: Any) -> str:
    """Return a number as text: counts with commas, other numbers with four digits.

    Args:
        value: any value of a result; everything except a finite number becomes a dash.

    >>> number(1234567), number(0.98765), number(0.00001), number(None)
    ('1,234,567', '0.9877', '1e-05', '\u2013')
    """
    if not is_number(value):
        return "\u2013"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def seconds(value: Any) -> str:
    """Return a time span in seconds as text.

    Args:
        value: seconds; everything except a finite number becomes a dash.

    >>> seconds(4.2), seconds(75), seconds(7300)
    ('4.20 s', '1 min 15 s', '2 h 1 min')
    """
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
    """Return an amount of memory in bytes as text in MB (10^6 bytes); a dash if it is not a finite number."""
    return f"{value / 1e6:,.2f} MB" if is_number(value) else "\u2013"


def of_heads(values: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return what heads add to a net in %: to its parameters, and to the operations of a step.

    Args:
        values: `parameters`, `rule_parameters`, `net_flops` and `head_flops`, as result.json has them.

    Returns:
        None if the rule has no heads, or if its operations were not counted.

    >>> of_heads({"parameters": 1000, "rule_parameters": 120, "net_flops": 2e6, "head_flops": 2.2e5})
    (12.0, 11.0)
    """
    pairs = (("rule_parameters", "parameters"), ("head_flops", "net_flops"))
    shares = [_share(values.get(part), values.get(whole)) for part, whole in pairs]
    return None if shares[0] is None or shares[1] is None else (shares[0], shares[1])


def _share(part: Any, whole: Any) -> float | None:
    return 100 * part / whole if is_number(part) and is_number(whole) and whole else None


def heads(values: Mapping[str, Any]) -> str:
    """Return what heads add to a net as text; a dash if there are none.

    Args:
        values: as `of_heads` takes them.

    >>> heads({"parameters": 1000, "rule_parameters": 120, "net_flops": 2e6, "head_flops": 2.2e5})
    '+12.0 % parameters, +11.0 % FLOPs'
    """
    added = of_heads(values)
    return "\u2013" if added is None else f"+{added[0]:.1f} % parameters, +{added[1]:.1f} % FLOPs"
