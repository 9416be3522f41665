"""Scores against costs: each rule is a dot with its name."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bpfree.lab.compare.curves import FONT, WIDTH, error, name_of_error
from bpfree.lab.compare.families import BASELINE, CONTROL, family, is_reference
from bpfree.lab.compare.measure import Row
from bpfree.pictures.labels import Named, label_points
from bpfree.pictures.plots import LINES, plain
from bpfree.pictures.scales import log_scale, value_scale

COSTS = {
    "cpu_seconds": ("CPU seconds", 1.0),
    "step_memory_bytes": ("peak memory of a step, MB", 1e-6),
    "energy_joules": ("energy, J", 1.0),
}
"""The costs that are drawn: for each key of a row its name and the factor to its unit."""
_HEIGHT, _OF_A_ROW = 3.2, 0.075  # inches, of a figure and for each row
_MARKERS = ("o", "s", "^", "D", "v", "P")  # one for each net


def draw_costs(rows: Sequence[Row], cost: str) -> Figure:
    """Draw the final error of each row against its cost. Lower and farther left is better.

    Args:
        rows: trained rows of one group that have this cost.
        cost: a key of `COSTS`.
    """
    name, scale = COSTS[cost]
    height = _HEIGHT + _OF_A_ROW * len(rows)
    figure = Figure(figsize=(WIDTH, height))
    above = _draw_key(figure, rows)
    axes = figure.add_axes((0.13, 0.5 / height, 0.85, 1 - (0.5 + above) / height))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 0.5)
    errors = [error(row["mean"], row["metric"]) for row in rows]
    costs = [scale * row[cost] for row in rows]
    value_scale(axes, "y", min(errors), max(errors))
    low, high = min(costs), max(costs)
    log_scale(axes, "x", low / (high / low) ** 0.06 / 1.1, high * (high / low) ** 0.12 * 1.1)
    first = rows[0]["runs"][0]
    axes.set_ylabel(f"{first['split']} {name_of_error(first['metric'])}", fontsize=FONT)
    axes.set_xlabel(name, fontsize=FONT)
    points = []
    for row, x, y in zip(rows, costs, errors, strict=True):
        color = color_of(row, rows)
        marker = _MARKERS[_nets(rows).index(row["net"]) % len(_MARKERS)]
        axes.plot([x], [y], marker, color=color, ms=6, markeredgewidth=0)
        points.append(Named(x, y, plain(row["name"]), color))
    label_points(axes, points, size=FONT - 0.5, radius=3.5)
    return figure


def _draw_key(figure: Figure, rows: Sequence[Row]) -> float:
    """Write what colours and markers mean above the panel, and return the height in inches that this takes."""
    families = list(dict.fromkeys(family(row) for row in rows if row["kind"] == "rule"))
    nets = _nets(rows)
    dots = [
        Line2D([], [], marker=_MARKERS[0], ls="", color=LINES[n % len(LINES)], label=name)
        for n, name in enumerate(families if len(families) > 1 else [])
    ]
    dots += [
        Line2D([], [], marker=_MARKERS[n % len(_MARKERS)], ls="", color=BASELINE, label=plain(net))
        for n, net in enumerate(nets if len(nets) > 1 else [])
    ]
    if not dots:
        return 0.2
    for dot in dots:
        dot.set(markersize=5, markeredgewidth=0)
    options = {"ncols": 2, "fontsize": FONT - 0.5, "frameon": False, "borderpad": 0, "handletextpad": 0.2}
    figure.legend(handles=dots, loc="upper left", **options)
    return 0.18 * -(-len(dots) // 2) + 0.1


def _nets(rows: Sequence[Row]) -> list[str]:
    """Return the nets of the rows in order."""
    return list(dict.fromkeys(row["net"] for row in rows))


def color_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the colour of a row's dot: grey for baselines and controls, else the colour of its family.

    Args:
        row: one of the rows.
        rows: trained rows of one group.
    """
    if row["kind"] != "rule":
        return BASELINE if is_reference(row) else CONTROL
    families = list(dict.fromkeys(family(other) for other in rows if other["kind"] == "rule"))
    return LINES[families.index(family(row)) % len(LINES)]
