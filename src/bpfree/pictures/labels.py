"""Labels in a picture that do not cover each other: at the ends of lines, and beside points."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, Bbox, Transform

SIZE = 8.5  # points; of labels unless another size is given
_LINE = 1.4  # height of a line of text, in sizes: fonts of browsers are higher than the letters that one sees
_GAP = 3.0  # points between a label and what it names
_FAR = 9.0  # points; a label farther from its point gets a line to it
_ROUNDS = 24  # distances that are tried for a label
_SIDES = 8  # of a point, on which a label is tried
_CROSSING = 4  # a line through another label is as bad as so many rounds farther away
_SAMPLED = 12  # points of a line that are tested for crossings


class Named(NamedTuple):
    """A point in a panel, and the label that belongs to it.

    Attributes:
        x: in the units of the data.
        y: in the units of the data.
        text: the label.
        color: of the label and of the line to it.
    """

    x: float
    y: float
    text: str
    color: str


def labelled_panel(labels: Sequence[str], *, width: float = 4.8, size: float = SIZE) -> tuple[Figure, Axes]:
    """Return a figure with one empty panel that leaves room for labels to its right.

    Its place does not change when it is drawn, as `label_ends` needs. The room at its left side is made there.

    Args:
        labels: the labels of the lines; with more of them the figure is higher.
        width: of the figure in inches. Default: so narrow that a phone can show it without scrolling.
        size: of the letters in points.
    """
    left, below, above = 0.62, 0.5, 0.32  # inches, for the labels of the axes and for a title
    inner = max(2.4, _LINE * size * len(labels) / 72)
    right = min(max((text_width(text, size) for text in labels), default=0.0) / 72 + 0.25, width / 2)
    height = inner + below + above
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, below / height, (width - left - right) / width, inner / height))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=size - 0.5)
    return figure, axes


def label_ends(axes: Axes, ends: Sequence[Named], *, size: float = SIZE) -> None:
    """Write the labels of lines in a column to the right of a panel, each as close to the end of its line as possible.

    The limits of the panel must be final.

    Args:
        axes: of a `labelled_panel`.
        ends: the last points of the lines; a point outside of the panel is moved to its border.
        size: of the letters in points.
    """
    if not ends:
        return
    _make_room(axes, size)
    box, places = _in_points(axes, ends)
    x, y = np.clip(places[:, 0], box.x0, box.x1), np.clip(places[:, 1], box.y0, box.y1)
    order = np.argsort(y, kind="stable")
    heights = np.empty_like(y)
    heights[order] = spread(y[order], box.y0, box.y1, _LINE * size)
    for end, left, height, target in zip(ends, x, y, heights, strict=True):
        if abs(target - height) > 1 or left < box.x1 - _GAP:
            corner = max(box.x1 + 2, left)
            _line(axes, [(left, height), (corner, height), (box.x1 + 9, target)], end.color)
        _text(axes, box.x1 + 11, target, end, size)


def _make_room(axes: Axes, size: float) -> None:
    """Move the left side of a panel so that the numbers and the name of its vertical axis have room."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    numbers = max((text_width(text, size) for text in axes.yaxis.get_major_formatter().format_ticks(ticks)), default=0)
    box = axes.get_position()
    left = (numbers + 2.2 * size + 8) / (72 * axes.figure.bbox.width / axes.figure.dpi)
    axes.set_position((left, box.y0, box.x1 - left, box.height))


def spread(heights: np.ndarray, low: float, high: float, step: float) -> np.ndarray:
    """Return heights that are at least a step apart, as close to the given ones as possible (least squares).

    Args:
        heights: [N], in ascending order.
        low: the lowest height that is allowed.
        high: the highest one; it is exceeded if N steps do not fit.
        step: the smallest distance between two heights.

    Example:
        >>> spread(np.array([1.0, 1.0, 5.0]), 0, 9, 2).tolist()
        [0.0, 2.0, 5.0]
    """
    from sklearn.isotonic import isotonic_regression

    # Without the shifts, labels need only stay in order, and the nearest such heights are an isotonic regression.
    shifts = step * np.arange(len(heights))
    highest = max(high - step * (len(heights) - 1), low)
    places: np.ndarray = isotonic_regression(heights - shifts, y_min=low, y_max=highest)
    return np.asarray(places + shifts)


def text_width(text: str, size: float = SIZE) -> float:
    """Return the width of a text in points.

    Args:
        text: one line.
        size: of the letters in points.
    """
    # Letters are placed on whole pixels, which makes a text up to a letter's rounding wider.
    return 1.03 * float(TextPath((0, 0), text, size=size).get_extents().x1) + 1 if text.strip() else 0.0


def label_points(axes: Axes, points: Sequence[Named], *, size: float = SIZE, radius: float = 4.0) -> None:
    """Write a label beside each of some points. Labels cover neither each other nor a point.

    The limits and the place of the panel must be final. A label that finds no place beside its point gets a thin line.

    Args:
        axes: gets the labels.
        points: the points.
        size: of the letters in points.
        radius: of the dots in points.
    """
    if not points:
        return
    box, places = _in_points(axes, points)
    dots = np.concatenate([places - radius, places + radius], axis=1)  # [N, 4]: left, bottom, right, top
    written = np.empty((0, 4))  # labels, and the lines to them
    # Points in a crowd choose first: those that stand alone find a place in any case.
    crowd = [float((np.hypot(*(places - place).T) < 40).sum()) for place in places]
    for at in np.argsort(crowd, kind="stable")[::-1]:
        point, place = points[at], places[at]
        choices = _choices(place, text_width(point.text, size), _LINE * size, radius)
        inside = (choices[:, :2] >= box.min).all(1) & (choices[:, 2:] <= box.max).all(1)
        free = inside & ~_overlap(choices, np.concatenate([dots, written])).any(1)
        lines = _lines(place, choices)  # [K, S, 4]
        crossings = _overlap(lines.reshape(-1, 4), written).reshape(*lines.shape[:2], -1).any(1).sum(1)
        rounds = np.arange(len(choices)) // _SIDES
        chosen = int(np.argmin(1e6 * ~inside + 1e3 * ~free + rounds + _CROSSING * crossings))
        left, bottom, right, top = choices[chosen]
        written = np.concatenate([written, choices[chosen : chosen + 1]])
        end = np.clip(place, (left, bottom), (right, top))
        if np.hypot(*(end - place)) > radius + _FAR:
            _line(axes, [tuple(place), tuple(end)], point.color)
            written = np.concatenate([written, lines[chosen]])
        _text(axes, left, (bottom + top) / 2, point, size)


def _choices(place: np.ndarray, wide: float, high: float, radius: float) -> np.ndarray:
    """Return boxes for a label [K, 4], from near to far: on eight sides of a point, then the same farther away."""
    size, boxes = np.array([wide, high]), []
    for round_ in range(_ROUNDS):
        far = radius + _GAP / 2 + 0.5 * high * round_
        for sides in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            side = np.array(sides)
            corner = place + side * far - size * (1 - side) / 2
            boxes.append(np.concatenate([corner, corner + size]))
    return np.stack(boxes)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return a matrix [N, M] that is True where box n overlaps the other box m."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.asarray(((low < others[None, :, 2:]) & (high > others[None, :, :2])).all(2))


def _lines(place: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return small boxes [K, S, 4] along the lines from a point to the nearest point of each of K labels."""
    ends = np.clip(place, labels[:, :2], labels[:, 2:])
    middles = place + np.linspace(0, 1, _SAMPLED)[None, :, None] * (ends - place)[:, None, :]
    return np.concatenate([middles - 0.5, middles + 0.5], axis=2)


def _in_points(axes: Axes, named: Sequence[Named]) -> tuple[Bbox, np.ndarray]:
    """Return the box of a panel, and places in it [N, 2], in points from the lower left corner of the figure."""
    scale = 72 / axes.figure.dpi
    box = axes.get_window_extent()
    places = axes.transData.transform([(each.x, each.y) for each in named])
    return Bbox(box.get_points() * scale), places * scale


def _from_points(axes: Axes) -> Transform:
    """Return the transformation from points to the pixels of a figure, whatever resolution it is saved with."""
    return Affine2D().scale(1 / 72) + axes.figure.dpi_scale_trans


def _line(axes: Axes, points: Sequence[tuple[float, float]], color: str) -> None:
    # Dotted: a leader must not look like a part of a curve.
    style: dict[str, Any] = {"color": color, "lw": 0.7, "ls": (0, (1, 1.5)), "transform": _from_points(axes)}
    axes.figure.add_artist(Line2D(*zip(*points, strict=True), **style))


def _text(axes: Axes, x: float, y: float, named: Named, size: float) -> None:
    # The centre and not the base line: then letters that reach below the line need no room of their own.
    axes.figure.text(
        *(x, y, named.text), color=named.color, fontsize=size, va="center_baseline", transform=_from_points(axes)
    )
