"""A picture of a certificate: the matrix of objectives and the matrix of dependencies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bpfree.lab.certify.certificate import Certificate
from bpfree.lab.certify.measurements import Differentiation, Measurements
from bpfree.pictures.plots import BLUE, GREY, ORANGE, label, write_figure

_NAMED = 40  # rows or columns; of more, only every second, third, ... gets a name
GREEN = "#009E73"  # from the palette of Okabe and Ito, which colour-blind people can tell apart
_PALE, _WHITE = "#d5e6f2", "#ffffff"
_OBJECTIVES = {"differentiated through": BLUE, "changed without being differentiated through": GREEN}
_GRADIENTS = {
    "depends on itself or on layers before it": _PALE,
    "depends on later layers of its own part": GREY,
    "depends on other parts behind it: it waits": ORANGE,
}

_KINDS = {"weights": "weights", "signs": "signs", "initial": "initial weights", "unknown": "what nobody can tell"}


def plot_dependencies(certificate: Certificate, path: Path) -> Path:
    """Draw which objective changes which layer, and whose gradient depends on whose weights.

    Args:
        certificate: the certificate of a rule that could be bound, so that it has measurements.
        path: the PNG to write; its folder is made.

    Returns:
        The path.
    """
    return write_figure(draw_dependencies(certificate), path)


def draw_dependencies(certificate: Certificate) -> Figure:
    """Return the picture as a figure, which can also be written as a vector file.

    Args:
        certificate: the certificate of a rule that could be bound, so that it has measurements.
    """
    measured = certificate.measurements
    assert measured is not None
    layers = rows = measured.structure.layers
    size = min(5.5 + 0.2 * len(layers), 10), min(4.0 + 0.2 * len(layers), 9)
    figure = Figure(figsize=(2 * size[0], size[1]), layout="constrained")
    figure.suptitle(f"{certificate.rule} on {certificate.net}, {measured.structure.depth} layers deep", fontsize=16)
    kinds = {**_OBJECTIVES, **_GRADIENTS}
    handles = [Patch(color=color, label=name) for name, color in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=11)
    left, right = figure.subplots(1, 2)
    _matrix(left, _objective_cells(measured), _OBJECTIVES, [o.name for o in measured.objectives], layers)
    label(left, f"Which objective changes which layer; longest chain {measured.chain}", x="layer", y="objective")
    _matrix(right, _dependency_cells(measured, rows), _GRADIENTS, rows, layers)
    label(right, "Whose gradient depends on whose weights", x="weights of", y="gradient of")
    _mark_transport(right, measured, rows)
    for axes in (left, right):
        axes.tick_params(labelsize=10)
    return figure


def _objective_cells(measured: Measurements) -> list[list[int]]:
    """Return one row for each objective; the numbers count the colours of _OBJECTIVES from 1."""

    def kind(o: Differentiation, layer: str) -> int:
        return 1 if layer in o.graph.through or layer in o.graph.reaches else 2 if layer in o.moves else 0

    return [[kind(o, layer) for layer in measured.structure.layers] for o in measured.objectives]


def _dependency_cells(measured: Measurements, rows: Sequence[str]) -> list[list[int]]:
    """Return one row for each gradient; the numbers count the colours of _GRADIENTS from 1."""
    dependencies = measured.dependencies

    def kind(i: str, j: str) -> int:
        if j not in dependencies.depends[i]:
            return 0
        return 3 if j in measured.waits_beyond(i) else 2 if j in dependencies.waits[i] else 1

    return [[kind(i, j) for j in measured.structure.layers] for i in rows]


def _matrix(
    axes: Axes, cells: list[list[int]], kinds: dict[str, str], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draw a field for each pair of row and column; its number chooses the colour, 0 is white."""
    if not cells:
        axes.text(0.5, 0.5, "nothing is differentiated", ha="center", fontsize=14, transform=axes.transAxes)
        cells, rows = [[0] * len(columns)], [""]
    colors = ListedColormap([_WHITE, *kinds.values()])
    axes.pcolormesh(np.array(cells), cmap=colors, vmin=-0.5, vmax=len(kinds) + 0.5, edgecolors="#e4e4e4", linewidth=0.6)
    axes.invert_yaxis()
    for names, line, turn in ((columns, axes.xaxis, 90), (rows, axes.yaxis, 0)):
        every = 1 + len(names) // _NAMED
        line.set_ticks(np.arange(len(names))[::every] + 0.5, list(names)[::every], rotation=turn)


def _mark_transport(axes: Axes, measured: Measurements, rows: Sequence[str]) -> None:
    """Write a letter where the way back reads weights (W, S, I; see _KINDS) or where nobody can tell (U)."""
    layers, transport = measured.structure.layers, measured.dependencies.transport
    if len(layers) > _NAMED:  # the letters would overlap
        return
    for i, read in transport.items():
        for j, kind in read.items():
            place = layers.index(j) + 0.5, rows.index(i) + 0.5
            axes.text(*place, kind[0].upper(), ha="center", va="center", fontsize=9)
    kinds = [kind for kind in _KINDS if any(kind in read.values() for read in transport.values())]
    if kinds:
        letters, words = ", ".join(kind[0].upper() for kind in kinds), ", ".join(_KINDS[kind] for kind in kinds)
        axes.set_title(f"{axes.get_title()}\n{letters}: the way back reads {words}", fontsize=15)
