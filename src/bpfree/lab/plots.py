"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bpfree.checkpoint import write_atomically
from bpfree.trackers import Record

Axis = Literal["epoch", "seconds"]


def plot_training(history: Sequence[Record], path: Path) -> None:
    """Loss and accuracy of one run over its epochs, training and validation, as a PNG."""
    figure, panels = _panels("epoch", history)
    for metric, axes in panels.items():
        for split, style in (("train", "--"), ("validation", "-")):
            _draw(axes, history, "epoch", split, metric, f"{split}", style, "C0")
    _save(figure, panels, path)


def compare_training(histories: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Validation loss and accuracy of several runs over the seconds they took, a colour for each, as a PNG.

    Args:
        histories: records of the epochs by the name of the run.
        path: of the PNG; its folder is made.
    """
    figure, panels = _panels("seconds", [record for history in histories.values() for record in history])
    for metric, axes in panels.items():
        axes.set(xscale="log", ylabel=f"validation {metric}", xlabel="seconds of training")
        for number, (name, history) in enumerate(histories.items()):
            _draw(axes, history, "seconds", "validation", metric, name, "-", f"C{number}")
    _save(figure, panels, path)


def plot_images(rows: Sequence[Tensor], path: Path) -> None:
    """Rows of images [N, 1 or 3, H, W] with values in [0, 1], one below the other, as a PNG."""
    figure = Figure(figsize=(len(rows[0]), len(rows)))
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.05, hspace=0.05)
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, images in zip(panels, rows, strict=True):
        for axes, image in zip(row, images.float().cpu().clamp(0, 1), strict=True):
            axes.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
            axes.axis("off")
    _write(figure, path)


def _panels(x: Axis, history: Sequence[Record]) -> tuple[Figure, dict[str, Axes]]:
    """A panel for the loss, and one for the accuracy if there is any."""
    found = any("accuracy" in record.get(split, {}) for record in history for split in ("train", "validation"))
    metrics = ["loss", "accuracy"] if found else ["loss"]
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    panels = dict(zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True))
    for metric, axes in panels.items():
        axes.set(xlabel=x, ylabel=metric)
        axes.grid(alpha=0.3)
    panels["loss"].set(yscale="log")
    return figure, panels


def _draw(
    axes: Axes, history: Sequence[Record], x: Axis, split: str, metric: str, label: str, style: str, color: str
) -> None:
    points = [(record[x], record[split][metric]) for record in history if metric in record.get(split, {})]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, label=label, marker="." if len(points) == 1 else "")


def _save(figure: Figure, panels: Mapping[str, Axes], path: Path) -> None:
    last = list(panels.values())[-1]
    if last.get_legend_handles_labels()[0]:
        last.legend(fontsize="small")
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
