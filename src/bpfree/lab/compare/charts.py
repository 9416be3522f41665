"""Make all figures of a comparison, for its page and for a paper."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from bpfree.lab.compare.curves import draw_curves, is_cut
from bpfree.lab.compare.families import by_net, panels
from bpfree.lab.compare.forest import draw_forest
from bpfree.lab.compare.measure import Row
from bpfree.lab.compare.scatter import COSTS, draw_costs

_AXES = {"epoch": "epoch", "CPU seconds": "seconds"}  # the axes of learning curves: their words in names of files

_ABOUT_GREY = "The baseline has the colour of the text. The controls are grey, and one panel names them."


class Drawn(NamedTuple):
    """A figure of a comparison.

    Attributes:
        name: for a file, such as "curves-by-epoch-feedback-alignment".
        figure: the figure.
        alt: a description for readers who cannot see it.
    """

    name: str
    figure: Figure
    alt: str


class Chapter(NamedTuple):
    """Figures that answer the same question.

    Attributes:
        title: of the section of a page.
        note: how to read the figures.
        figures: in order.
    """

    title: str
    note: str
    figures: list[Drawn]


def chapters(group: dict[str, Any]) -> list[Chapter]:
    """Return all figures of a group: differences from the baselines, learning curves, and scores against costs.

    Args:
        group: a group of the record.
    """
    rows = [row for row in group["rows"] if row["runs"]]
    if not rows:
        return []
    made = [_differences(rows), *(_curves(rows, by) for by in _AXES), _costs(rows)]
    return [chapter for chapter in made if chapter.figures]


def _differences(rows: Sequence[Row]) -> Chapter:
    """Return a forest plot for each net."""
    drawn = []
    for net, of in by_net(rows).items():
        figure = draw_forest(of, net)
        if figure is not None:
            alt = f"Differences from the baseline of the net {net}, with confidence intervals."
            drawn.append(Drawn(f"differences-{file_name(net)}", figure, alt))
    logarithmic = any(axes.get_xscale() == "symlog" for each in drawn for axes in each.figure.axes)
    shown = "Full dots in green or red: p < 0.05 after Holm's correction. Hollow dots: no difference is shown."
    tested = any("interval" in row for row in rows)
    interval = "Dot: the mean difference over the seeds. Line: its 95 % confidence interval. "
    note = interval + shown if tested else "The seeds are too few to show a difference between rules."
    broken = " Near 0 the axis is linear, and farther away it is logarithmic." if logarithmic else ""
    return Chapter("Differences", note + broken, drawn)


def _curves(rows: Sequence[Row], by: str) -> Chapter:
    """Return the learning curves, over epochs or CPU seconds."""
    drawn, cut = [], False
    for panel in panels(rows):
        names = ", ".join(panel.named)
        alt = f"Learning curves over {by} of {names}."
        name = f"curves-by-{_AXES[by]}-{file_name(panel.title)}"
        drawn.append(Drawn(name, draw_curves(panel, by), alt))
        cut = cut or is_cut(panel)
    many = len(drawn) > len(by_net(rows))
    notes = ["Each panel has axes of its own."] if len(drawn) > 1 else []
    notes += [_ABOUT_GREY] if many else []
    seeds = max(len(row["runs"]) for row in rows)
    notes += [f"Lines are means over {seeds} seeds; bands reach from the best seed to the worst."] if seeds > 1 else []
    notes += ["Curves that begin above a panel are cut off."] if cut else []
    return Chapter(f"Learning curves by {by}", " ".join(notes), drawn)


def _costs(rows: Sequence[Row]) -> Chapter:
    """Return the scores against each cost that was measured."""
    drawn = []
    for cost, (name, _) in COSTS.items():
        measured = [row for row in rows if row.get(cost)]
        if measured:
            alt = f"Final score of {len(measured)} rows against {name}."
            drawn.append(Drawn(f"score-by-{cost.replace('_', '-')}", draw_costs(measured, cost), alt))
    return Chapter(
        "Score and cost", "Lower and farther left is better. Both axes are logarithmic where it helps.", drawn
    )


def file_name(text: str) -> str:
    """Return a text as a part of a file name, such as "mlp-hidden-128-128".

    Args:
        text: such as the name of a net.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "net"
