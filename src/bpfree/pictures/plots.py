"""Pictures of runs, and what all pictures share."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bpfree.disk.atomic import make_folder, write_atomically
from bpfree.trackers import TRACKERS, Record

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#717581"  # told apart by every eye (Okabe & Ito)
_CLASSES = (  # likewise, by Petroff, https://arxiv.org/abs/2107.02270
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_GIF_DPI = 80


def plot_training(history: Sequence[Record], path: Path) -> Path:
    """Loss and accuracy of one run over its epochs, training and validation, as a PNG."""
    figure, panels = _panels(history)
    for metric, axes in panels.items():
        for split, style in (("train", "--"), ("validation", "-")):
            _draw(axes, history, split, metric, f"{split}", style, "C0")
    return _save(figure, panels, path)


def plot_tracked(records: Sequence[Record], folder: Path) -> list[Path]:
    """What each tracker measured over the steps, a line for each layer, first to last from dark to light, as PNGs.

    Args:
        records: of any number of trackers.
        folder: gets `<tracker>.png` for each; it is made.
    """
    by_tracker: dict[str, list[Record]] = {}
    for record in records:
        by_tracker.setdefault(record["tracker"], []).append(record)
    written = []
    for tracker, own in by_tracker.items():
        layers = list(dict.fromkeys(layer for record in own for layer in record["values"]))
        known = TRACKERS.get(tracker)
        unit = known.unit if known else ""
        if layers:
            groups = [layers] if unit or known is None else [[layer] for layer in layers]
            title = plain(f"{tracker} ({unit})" if unit else tracker)
            written.append(_plot_layers(own, groups, title, folder / f"{_file_name(tracker)}.png"))
    return written


def _plot_layers(records: Sequence[Record], groups: Sequence[Sequence[str]], title: str, path: Path) -> Path:
    """A panel for each group of layers that share a unit."""
    figure = Figure(figsize=(9, 1.5 + 3 * len(groups)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, layers in zip(panels, groups, strict=True):
        axes.set(xlabel="step", ylabel=plain(layers[0]) if len(groups) > 1 else "")
        axes.grid(alpha=0.3)
        for number, layer in enumerate(layers):
            points = [(record["step"], record["values"][layer]) for record in records if layer in record["values"]]
            color = colormaps["viridis"](0.95 * number / max(len(layers) - 1, 1))
            axes.plot(
                *zip(*points, strict=True), color=color, label=plain(layer), marker="." if len(points) == 1 else ""
            )
        if len(groups) == 1:
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(layers) // 25)
    return write_figure(figure, path)


def plot_images(rows: Sequence[Tensor], path: Path) -> Path:
    """Rows of images [N, 1 or 3, H, W] with values in [0, 1], one below the other, as a PNG."""
    figure = Figure(figsize=(len(rows[0]), len(rows)))
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.05, hspace=0.05)
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, images in zip(panels, rows, strict=True):
        for axes, image in zip(row, images.float().cpu().clamp(0, 1), strict=True):
            show_image(axes, image)
    return write_figure(figure, path)


def show_image(axes: Axes, image: Tensor) -> None:
    """An image [1 or 3, H, W] with values in [0, 1], without axes."""
    axes.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    axes.axis("off")


def label(axes: Axes, title: str = "", *, x: str = "", y: str = "") -> None:
    """Title and axes in letters that can be read on a slide."""
    axes.set_title(title, fontsize=15)
    axes.set_xlabel(x, fontsize=14)
    axes.set_ylabel(y, fontsize=14)
    axes.tick_params(labelsize=12)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: no formulas, and no name that a legend would leave out."""
    shown = text.replace("$", r"\$").encode("utf-8", "replace").decode()
    return f" {shown}" if shown.startswith("_") else shown


def _file_name(text: str) -> str:
    """Without what leads out of a folder."""
    return re.sub(r"[^\w-]+", "_", text)[:100]


def class_color(index: int, classes: int) -> str | tuple[float, float, float, float]:
    """The colour of a class; with more than ten, from dark to light."""
    return _CLASSES[index] if classes <= len(_CLASSES) else colormaps["viridis"](index / (classes - 1))


def _panels(history: Sequence[Record]) -> tuple[Figure, dict[str, Axes]]:
    """A panel for the loss, and one for the accuracy if there is any."""
    found = any("accuracy" in record.get(split, {}) for record in history for split in ("train", "validation"))
    metrics = ["loss", "accuracy"] if found else ["loss"]
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    panels = dict(zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True))
    for metric, axes in panels.items():
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
    panels["loss"].set(yscale="log")
    return figure, panels


def _draw(axes: Axes, history: Sequence[Record], split: str, metric: str, label: str, style: str, color: str) -> None:
    points = [(record["epoch"], record[split][metric]) for record in history if metric in record.get(split, {})]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, label=label, marker="." if len(points) == 1 else "")


def _save(figure: Figure, panels: Mapping[str, Axes], path: Path) -> Path:
    last = list(panels.values())[-1]
    if last.get_legend_handles_labels()[0]:
        last.legend(fontsize="small")
    return write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> Path:
    """As a PNG; its folder is made."""
    make_folder(path.parent)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a name in letters that the font has not
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    return path


def write_animation(
    figure: Figure, moving: Sequence[Artist], show: Callable[[int], None], frames: int, path: Path
) -> Path:
    """As a GIF that runs for ever and rests at its end; the folder is made.

    Args:
        figure: what is drawn, once.
        moving: what of it is drawn anew for each frame.
        show: makes that what it is in a frame, given by number.
        frames: how many.
        path: of the GIF.
    """
    figure.set_dpi(_GIF_DPI)
    canvas = FigureCanvasAgg(figure)
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()  # type: ignore[no-untyped-call]
    still = canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]
    pixels = []
    for number in range(frames):
        canvas.restore_region(still)  # type: ignore[no-untyped-call]
        show(number)
        for artist in moving:
            figure.draw_artist(artist)
        pixels.append(np.array(canvas.buffer_rgba())[..., :3])  # type: ignore[no-untyped-call]
    height, width = pixels[0].shape[:2]
    strip = Image.fromarray(np.concatenate(pixels)).quantize()  # all at once, for one palette
    images = [strip.crop((0, top, width, top + height)) for top in range(0, strip.height, height)]
    pauses = [800, *[300] * (frames - 2), 2500][:frames]
    make_folder(path.parent)
    write_atomically(
        path,
        lambda temporary: images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=pauses, loop=0
        ),
    )
    return path
