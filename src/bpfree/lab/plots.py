"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bpfree.checkpoint import write_atomically
from bpfree.trackers import Record

Axis = Literal["epoch", "seconds"]


def plot_training(history: Sequence[Record], path: Path) -> None:
    """Loss and accuracy of one run over its epochs, training and validation, as a PNG."""
    figure, panels = _panels("epoch")
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
    figure, panels = _panels("seconds")
    for metric, axes in panels.items():
        axes.set(xscale="log", ylabel=f"validation {metric}", xlabel="seconds of training")
        for number, (name, history) in enumerate(histories.items()):
            _draw(axes, history, "seconds", "validation", metric, name, "-", f"C{number}")
    _save(figure, panels, path)


def _panels(x: Axis) -> tuple[Figure, dict[str, Axes]]:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.set(xlabel=x, ylabel="loss", yscale="log")
    accuracy.set(xlabel=x, ylabel="accuracy")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    return figure, {"loss": loss, "accuracy": accuracy}


def _draw(
    axes: Axes, history: Sequence[Record], x: Axis, split: str, metric: str, label: str, style: str, color: str
) -> None:
    points = [(record[x], record[split][metric]) for record in history if metric in record.get(split, {})]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, label=label, marker="." if len(points) == 1 else "")


def _save(figure: Figure, panels: Mapping[str, Axes], path: Path) -> None:
    accuracy = panels["accuracy"]
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
