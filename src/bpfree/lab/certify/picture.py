"""The dependency matrix of a certificate, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bpfree.lab.certify.certificate import Certificate, Differentiation
from bpfree.pictures.plots import BLUE, GREY, ORANGE, label, write_figure

_NAMED = 40  # rows and columns, beyond which only every so many is named
GREEN = "#009E73"  # told apart from the others by every eye (Okabe & Ito)
_PALE, _WHITE = "#d5e6f2", "#ffffff"
_OBJECTIVES = {"differentiated through": BLUE, "moved all the same": GREEN}
_GRADIENTS = {
    "depends on itself, or what is before it": _PALE,
    "on what is behind it in its own part": GREY,
    "on other parts behind it: it waits": ORANGE,
}


def plot_dependencies(certificate: Certificate, path: Path) -> Path:
    """Which objective moves which layer, and whose gradient depends on whose weights, side by side as a PNG.

    Args:
        certificate: of a rule that could be bound.
        path: of the PNG; its folder is made.
    """
    layers = rows = certificate.layers
    size = min(5.5 + 0.2 * len(layers), 10), min(4.0 + 0.2 * len(layers), 9)
    figure = Figure(figsize=(2 * size[0], size[1]), layout="constrained")
    figure.suptitle(f"{certificate.rule} on {certificate.net}, {certificate.depth} layers deep", fontsize=16)
    kinds = {**_OBJECTIVES, **_GRADIENTS}
    handles = [Patch(color=color, label=name) for name, color in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=11)
    left, right = figure.subplots(1, 2)
    _matrix(left, _objectives(certificate), _OBJECTIVES, [o.name for o in certificate.objectives], layers)
    label(left, f"What moves what; longest chain {certificate.chain}", x="layer", y="objective")
    _matrix(right, _dependencies(certificate, rows), _GRADIENTS, rows, layers)
    label(right, "Whose gradient depends on whose weights", x="weights of", y="gradient of")
    _mark_transport(right, certificate, rows)
    for axes in (left, right):
        axes.tick_params(labelsize=10)
    return write_figure(figure, path)


def _objectives(certificate: Certificate) -> list[list[int]]:
    def kind(o: Differentiation, layer: str) -> int:
        return 1 if layer in o.through or layer in o.reaches else 2 if layer in o.moves else 0

    return [[kind(o, layer) for layer in certificate.layers] for o in certificate.objectives]


def _dependencies(certificate: Certificate, rows: Sequence[str]) -> list[list[int]]:
    def kind(i: str, j: str) -> int:
        if j not in certificate.depends[i]:
            return 0
        return 3 if j in certificate.waits_beyond(i) else 2 if j in certificate.waits[i] else 1

    return [[kind(i, j) for j in certificate.layers] for i in rows]


def _matrix(
    axes: Axes, cells: list[list[int]], kinds: dict[str, str], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """A field for each pair, a colour for each kind."""
    if not cells:
        axes.text(0.5, 0.5, "nothing is differentiated", ha="center", fontsize=14, transform=axes.transAxes)
        cells, rows = [[0] * len(columns)], [""]
    colors = ListedColormap([_WHITE, *kinds.values()])
    axes.pcolormesh(np.array(cells), cmap=colors, vmin=-0.5, vmax=len(kinds) + 0.5, edgecolors="#e4e4e4", linewidth=0.6)
    axes.invert_yaxis()
    for names, line, turn in ((columns, axes.xaxis, 90), (rows, axes.yaxis, 0)):
        every = 1 + len(names) // _NAMED
        line.set_ticks(np.arange(len(names))[::every] + 0.5, list(names)[::every], rotation=turn)


def _mark_transport(axes: Axes, certificate: Certificate, rows: Sequence[str]) -> None:
    """W where the way back reads weights, S where it reads their signs."""
    if len(certificate.layers) > _NAMED:
        return
    for i, own in certificate.transport.items():
        for j, kind in own.items():
            place = certificate.layers.index(j) + 0.5, rows.index(i) + 0.5
            axes.text(*place, kind[0].upper(), ha="center", va="center", fontsize=9)
    if certificate.transport:
        axes.set_title(axes.get_title() + "\nW, S: the way back reads weights, signs", fontsize=15)
