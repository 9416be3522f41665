"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bpfree.checkpoint import write_atomically
from bpfree.trackers import Record

_SPLITS = {"train": "--", "validation": "-"}


def plot_training(history: Sequence[Record], path: Path) -> None:
    """Loss and accuracy over the epochs, training dashed and validation solid, as a PNG."""
    compare_training({"": history}, path)


def compare_training(histories: Mapping[str, Sequence[Record]], path: Path) -> None:
    """The same for several runs in one picture, a colour for each.

    Args:
        histories: records of the epochs by the name of the run.
        path: of the PNG; its folder is made.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for metric, axes in zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True):
        for number, (name, history) in enumerate(histories.items()):
            for split, style in _SPLITS.items():
                points = [(r["epoch"], r[split][metric]) for r in history if metric in r.get(split, {})]
                if points:
                    label = f"{name} {split}".strip()
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, linewidth=1.5)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
    if handles := axes.get_legend_handles_labels()[0]:
        axes.legend(handles=handles, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
