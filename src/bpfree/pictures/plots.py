"""Draw curves of training and of trackers, and share what all pictures need: colours, labels, PNG and GIF files."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bpfree.disk.atomic import make_folder, write_atomically
from bpfree.pictures.scales import linear_scale, value_scale
from bpfree.trackers import MEASURES
from bpfree.training.listener import Record

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#717581"  # colour-blind readers can tell them apart (Okabe & Ito)
_CLASSES = (  # ten colours for which this holds too, by Petroff, https://arxiv.org/abs/2107.02270
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
CLEAR_BLUE = LinearSegmentedColormap.from_list("clear blue", [to_rgba(BLUE, 0), to_rgba(BLUE, 1)])
"""Colours of a map: transparent where a value is 0, so that it fits the background of a dark page too."""
LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255")
"""Colours of the lines of a panel. Colour-blind readers can tell them apart (Okabe and Ito; the last one by Tol)."""
_GIF_DPI = 80


def plot_training(history: Sequence[Record], path: Path) -> Path:
    """Plot loss and accuracy of one run over its epochs, for training and validation.

    Args:
        history: one record per epoch.
        path: the PNG file.

    Returns:
        The path.
    """
    figure, panels = _panels(history)
    for metric, axes in panels.items():
        for split in ("train", "validation"):
            _draw(axes, history, split, metric)
        values = [y for line in axes.lines for y in np.asarray(line.get_ydata()).tolist() if np.isfinite(y)]
        if values:
            value_scale(axes, "y", min(values), max(values), log=metric == "loss")
        if len(history) == 1:
            axes.set_xlim(history[0]["epoch"] - 1, history[0]["epoch"] + 1)
        linear_scale(axes, "x", integer=True)
    return _save(figure, panels, path)


def plot_tracked(records: Sequence[Record], folder: Path) -> list[Path]:
    """Plot what each tracker measured over the steps, with a line for each layer, from dark (first) to light (last).

    Args:
        records: of any number of trackers.
        folder: gets `<tracker>.png` for each tracker; it is made.

    Returns:
        The paths of the pictures.
    """
    by_tracker: dict[str, list[Record]] = {}
    for record in records:
        by_tracker.setdefault(record["tracker"], []).append(record)
    written = []
    for tracker, measurements in by_tracker.items():
        layers = list(dict.fromkeys(layer for record in measurements for layer in record["values"]))
        kind = MEASURES.get(tracker)  # None: a tracker of the user's
        unit = kind.unit if kind else ""
        if layers:
            # A shipped tracker without a unit measures several quantities, and one axis cannot serve them all.
            groups = [layers] if unit or kind is None else [[layer] for layer in layers]
            title = plain(f"{tracker} ({unit})" if unit else tracker)
            written.append(_plot_layers(measurements, groups, title, folder / f"{_file_name(tracker)}.png"))
    return written


def _plot_layers(records: Sequence[Record], groups: Sequence[Sequence[str]], title: str, path: Path) -> Path:
    """Draw a panel for each group of layers that share a unit; bytes are shown in MB."""
    figure = Figure(figsize=(9, 1.5 + 3 * len(groups)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, layers in zip(panels, groups, strict=True):
        in_bytes = len(groups) > 1 and layers[0].endswith("_bytes")
        name = f"{layers[0].removesuffix('_bytes')}, MB" if in_bytes else layers[0]
        axes.set(xlabel="step", ylabel=plain(name.replace("_", " ")) if len(groups) > 1 else "")
        axes.grid(alpha=0.3)
        for number, layer in enumerate(layers):
            points = [(record["step"], record["values"][layer]) for record in records if layer in record["values"]]
            if in_bytes:
                points = [(step, 1e-6 * value) for step, value in points]
            color = colormaps["viridis"](0.9 * number / max(len(layers) - 1, 1)) if len(layers) > 1 else BLUE
            axes.plot(
                *zip(*points, strict=True), color=color, label=plain(layer), marker="." if len(points) == 1 else ""
            )
        linear_scale(axes, "x", integer=True)
        linear_scale(axes, "y")
        if len(groups) == 1:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(layers) // 22)
    return write_figure(figure, path)


def plot_images(rows: Sequence[Tensor], path: Path) -> Path:
    """Draw rows of images, one row below the other.

    Args:
        rows: images [N, 1 or 3, H, W] with values in [0, 1]; as many in each row.
        path: the PNG file.

    Returns:
        The path.
    """
    figure = Figure(figsize=(len(rows[0]), len(rows)))
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.05, hspace=0.05)
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, images in zip(panels, rows, strict=True):
        for axes, image in zip(row, images.float().cpu().clamp(0, 1), strict=True):
            show_image(axes, image)
    return write_figure(figure, path)


def show_image(axes: Axes, image: Tensor) -> None:
    """Show an image without axes.

    Args:
        axes: gets the image.
        image: [1 or 3, H, W], values in [0, 1].
    """
    axes.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    axes.axis("off")


def label(axes: Axes, title: str = "", *, x: str = "", y: str = "") -> None:
    """Write title and axis labels in letters large enough for a slide.

    Args:
        axes: gets the labels.
        title: above the panel.
        x: below the horizontal axis.
        y: beside the vertical axis.
    """
    axes.set_title(title, fontsize=15)
    axes.set_xlabel(x, fontsize=14)
    axes.set_ylabel(y, fontsize=14)
    axes.tick_params(labelsize=12)


def plain(text: str) -> str:
    r"""Return a text in a form that matplotlib shows unchanged.

    Args:
        text: any text, such as the name of a class or of a layer.

    Example:
        >>> plain("price in $")
        'price in \\$'
        >>> plain("_private")
        ' _private'
    """
    # A $ would begin a formula; a lone surrogate cannot be drawn; a legend leaves out names that begin with "_".
    shown = text.replace("$", r"\$").encode("utf-8", "replace").decode()
    return f" {shown}" if shown.startswith("_") else shown


def _file_name(text: str) -> str:
    """Return a tracker's name as a file name: no dots or slashes, which could lead out of the folder."""
    return re.sub(r"[^\w-]+", "_", text)[:100]


def class_color(index: int, classes: int) -> str | tuple[float, float, float, float]:
    """Return the colour of a class. Ten classes have colours of their own; more go from dark to light.

    Args:
        index: the class, from 0 on.
        classes: the number of classes.
    """
    return _CLASSES[index] if classes <= len(_CLASSES) else colormaps["viridis"](index / (classes - 1))


def _panels(history: Sequence[Record]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel for the loss, and one for the accuracy if some record has it."""
    has_accuracy = any("accuracy" in record.get(split, {}) for record in history for split in ("train", "validation"))
    metrics = ["loss", "accuracy"] if has_accuracy else ["loss"]
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    panels = dict(zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True))
    for metric, axes in panels.items():
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
    return figure, panels


def _draw(axes: Axes, history: Sequence[Record], split: str, metric: str) -> None:
    """Draw a metric on one split: training in grey and dashed, validation in blue."""
    points = [(record["epoch"], record[split][metric]) for record in history if metric in record.get(split, {})]
    if points:
        # With one epoch, a hollow dot for training lies around that for validation even if both values are equal.
        train = split == "train"
        look: dict[str, Any] = {"color": GREY, "ls": "--", "markerfacecolor": "none"} if train else {"color": BLUE}
        look |= {"marker": "o", "ms": 10 if train else 5} if len(points) == 1 else {}
        axes.plot(*zip(*points, strict=True), lw=1.8, label=split, **look)


def _save(figure: Figure, panels: Mapping[str, Axes], path: Path) -> Path:
    last = list(panels.values())[-1]
    if last.get_legend_handles_labels()[0]:
        last.legend(fontsize="small")
    return write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, atomically.

    Args:
        figure: drawn already.
        path: the PNG file; its folder is made.

    Returns:
        The path.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder(path.parent)
    with warnings.catch_warnings():
        # Names of classes may be in letters that the font does not have. Boxes are shown, and no warning is needed.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    return path


def write_animation(
    figure: Figure, moving: Sequence[Artist], show: Callable[[int], None], frames: int, path: Path
) -> Path:
    """Write a GIF file that repeats for ever, with a pause at its end.

    The still parts of the figure are drawn once and copied into each frame, which is many times as fast as drawing
    each frame in full.

    Args:
        figure: drawn once, without its moving parts.
        moving: the parts that are drawn anew for each frame.
        show: takes the number of a frame, from 0 on, and changes the moving parts to what it shows.
        frames: the number of frames.
        path: the GIF file; its folder is made.

    Returns:
        The path.

    Raises:
        UserError: the file cannot be written.
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
    # All frames are quantised as one tall image: with a palette for each frame, colours would flicker.
    strip = Image.fromarray(np.concatenate(pixels)).quantize()
    images = [strip.crop((0, top, width, top + height)) for top in range(0, strip.height, height)]
    # Milliseconds. A slice, since a film may have a single frame.
    pauses = [800, *[300] * (frames - 2), 2500][:frames]
    make_folder(path.parent)
    write_atomically(
        path,
        lambda temporary: images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=pauses, loop=0
        ),
    )
    return path
