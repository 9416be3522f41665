"""Draw samples on their way from noise to the prediction, as still and moving pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from bpfree.pictures.curves import draw_classes, principal
from bpfree.pictures.plots import BLUE, CLEAR_BLUE, ORANGE, class_color, label, show_image, write_animation
from bpfree.pictures.trail import Trail

_SAMPLES = 6
_MOVING = 3  # samples beside the cloud
_CLASSES = 10  # shown for each sample; if there are more, those with the highest scores
_WINDOW = 2.5  # half the width of a cloud's picture, in radii of the circle of embeddings
_SOFTMAX = "softmax of the scores"


def plot_predictions(trail: Trail, images: Tensor | None, *, which: str, unit: str) -> Figure:
    """Draw, for six samples, the probability of each class if inference ended after each step.

    Args:
        trail: of the samples, from noise.
        images: the samples as images [N, 1 or 3, H, W] in [0, 1]; None if they are not images.
        which: name of the samples in the title, such as "test samples".
        unit: the word for a step of inference, "block" or "step".

    Returns:
        The figure.
    """
    probabilities = trail.outputs[:, :_SAMPLES].softmax(-1).nan_to_num()
    count = probabilities.shape[1]
    columns = min(3, count)
    rows = math.ceil(count / columns)
    height = 1.6 + 3.2 * rows
    figure = Figure(figsize=(max(10, 5 * columns), height))
    figure.suptitle(f"Predictions for {count} {which} if inference ended after each {unit}", fontsize=16)
    ratios = [2, 5] if images is not None else [5]
    grid = figure.add_gridspec(rows, columns * len(ratios), width_ratios=ratios * columns, wspace=0.3, hspace=0.25)
    grid.update(left=0.05, right=0.9, top=1 - 1 / height, bottom=0.8 / height)
    maps, high = [], float(probabilities[-1].max())
    for n in range(count):
        row, last = n // columns, (n % columns + 1) * len(ratios) - 1
        if images is not None:
            show_image(figure.add_subplot(grid[row, last - 1]), images[n])
        axes = figure.add_subplot(grid[row, last])
        maps.append(_draw_map(axes, probabilities[:, n], int(trail.y[n]), high=high))
        label(axes, x=f"{unit}s passed (0: noise)" if row == rows - 1 else "", y="class" if last < len(ratios) else "")
        _write_title(axes, trail, n)
        axes.set_xticks(range(len(trail.steps)), [str(step) for step in trail.steps])
    figure.colorbar(maps[0], figure.add_axes((0.925, 0.2, 0.012, 0.6)), extend="max").set_label(_SOFTMAX, fontsize=13)
    return figure


def _draw_map(axes: Axes, probabilities: Tensor, true: int, *, high: float) -> AxesImage:
    """Draw probabilities [S, D] as a map: dots mark the highest of each step, orange the true class."""
    shown = _shown(probabilities, true)
    picture = axes.imshow(probabilities[:, shown].T.numpy(), cmap=CLEAR_BLUE, vmin=0, vmax=high, aspect="auto")
    axes.plot(probabilities[:, shown].argmax(1).numpy(), "o-", color="black", ms=4, lw=0.8)
    axes.set_yticks(range(len(shown)), [str(k) for k in shown])
    axes.get_yticklabels()[shown.index(true)].set(color=ORANGE, weight="bold")
    return picture


def _shown(probabilities: Tensor, true: int) -> list[int]:
    """Return the true class and those that are most likely at some step, in the order of their numbers."""
    # 2 is above every probability, so the true class is always among the highest.
    highest = probabilities.max(0).values.index_fill(0, torch.tensor(true), 2.0)
    return sorted(highest.topk(min(_CLASSES, len(highest))).indices.tolist())


def _write_title(axes: Axes, trail: Trail, n: int) -> None:
    """Write the true and the predicted class of sample n above its panel, in orange if they differ."""
    true, predicted = int(trail.y[n]), int(trail.outputs[-1, n].argmax())
    title = f"true {true}, predicted {predicted}"
    axes.set_title(title, fontsize=15, color="black" if true == predicted else ORANGE)


def animate_predictions(
    trail: Trail, images: Tensor | None, embeddings: Tensor, path: Path, *, which: str, unit: str
) -> Path:
    """Animate a cloud of z that moves from noise to the class embeddings, and the class scores of three samples.

    Args:
        trail: of the samples, from noise.
        images: the samples as images [N, 1 or 3, H, W] in [0, 1]; None if they are not images.
        embeddings: [C, E], of the classes.
        path: the GIF file.
        which: name of the samples in the picture, such as "test samples".
        unit: the word for a step of inference, "block" or "step".

    Returns:
        The path.
    """
    count = min(_MOVING, len(trail.y))
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    ratios = [5, 1, 3] if images is not None else [5, 3]
    grid = figure.add_gridspec(count, len(ratios), width_ratios=ratios)
    dots, places = _draw_cloud(figure.add_subplot(grid[:, 0]), trail, embeddings, which)
    probabilities = trail.outputs[:, :count].softmax(-1).nan_to_num()
    bars = []
    for n in range(count):
        if images is not None:
            show_image(figure.add_subplot(grid[n, 1]), images[n])
        axes = figure.add_subplot(grid[n, -1])
        bars.append(_draw_bars(axes, probabilities[:, n], int(trail.y[n]), high=float(probabilities.max())))
    label(axes, x=_SOFTMAX)
    # The longest title first: the layout is made once, and must have room for all of them.
    title = figure.suptitle(_moment(trail.steps, -1, unit), fontsize=17)

    def show(frame: int) -> None:
        title.set_text(_moment(trail.steps, frame, unit))
        dots.set_offsets(places[frame].numpy())
        for drawn, heights in bars:
            for bar, height in zip(drawn, heights[frame], strict=True):
                bar.set_height(height)

    moving = [title, dots, *(bar for drawn, _ in bars for bar in drawn)]
    return write_animation(figure, moving, show, len(trail.steps), path)


def _draw_cloud(axes: Axes, trail: Trail, embeddings: Tensor, which: str) -> tuple[PathCollection, Tensor]:
    """Draw the samples as dots at the start, and return the dots and their places [S, N, 2] after each step."""
    middle, plane = plane_of(embeddings)
    places = (trail.z.nan_to_num() - middle) @ plane
    colors = [class_color(int(k), len(embeddings)) for k in trail.y]
    dots = axes.scatter(places[0, :, 0], places[0, :, 1], c=colors, s=24, alpha=0.75, linewidths=0)
    draw_classes(axes, (embeddings - middle) @ plane)
    # Noise may lie far outside the embeddings: the window follows it up to a limit, and a few dots may start outside.
    reach = float(((embeddings - middle) @ plane).abs().max())
    window = min(_WINDOW * reach, max(1.3 * reach, float(places.abs().max())))
    axes.set(xticks=[], yticks=[], aspect="equal", xlim=(-window, window), ylim=(-window, window))
    label(axes, x=f"z of {len(trail.y)} {which} (colour: true class)")
    return dots, places


def plane_of(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return a plane on which the embeddings of the classes lie apart: on a circle if possible, else by PCA.

    Args:
        embeddings: [C, E].

    Returns:
        A point [E] and a matrix [E, 2]: `(z - point) @ matrix` gives the coordinates of z on the plane.
    """
    middle = embeddings.mean(0)
    centred = embeddings - middle
    angles = 2 * math.pi * torch.arange(len(embeddings)) / len(embeddings)
    circle = torch.stack([angles.sin(), angles.cos()], dim=1)
    # Least squares: the plane that puts each class at its place on the circle. Independent embeddings (one-hot ones, or
    # E >= C) reach it exactly; with fewer dimensions they cannot, and PCA shows them truly.
    plane = torch.linalg.pinv(centred) @ circle
    if not torch.allclose(centred @ plane, circle, atol=1e-2):
        plane = torch.linalg.pinv(centred) @ principal(centred)
    return middle, plane


def _draw_bars(
    axes: Axes, probabilities: Tensor, true: int, *, high: float
) -> tuple[list[Rectangle], list[list[float]]]:
    """Draw a bar for each class, the true one in orange; return the bars and their heights [S, ...] after each step."""
    shown = _shown(probabilities, true)
    heights = probabilities[:, shown].tolist()
    colors = [ORANGE if k == true else BLUE for k in shown]
    drawn = axes.bar(range(len(shown)), heights[0], color=colors)
    axes.set_xticks(range(len(shown)), [str(k) for k in shown])
    axes.set_ylim(0, max(high, 1e-3))
    label(axes, f"true {true}")
    return list(drawn), heights


def plot_rebuilding(originals: Tensor, rebuilt: Tensor, steps: Sequence[int], *, unit: str) -> Figure:
    """Draw six samples and the image that z shows after each step.

    Args:
        originals: samples as images [N, 1 or 3, H, W] in [0, 1].
        rebuilt: [S, N, 1 or 3, H, W] in [0, 1], the image after each of S steps.
        steps: S numbers of steps, 0 for the start.
        unit: the word for a step of inference, "block" or "step".

    Returns:
        The figure.
    """
    count = min(_SAMPLES, len(originals))
    sheet = mosaic([[originals[n], *rebuilt[:, n]] for n in range(count)])
    high, wide = (side / many for side, many in zip(sheet.shape[1:], (count, 1 + len(steps)), strict=True))
    figure = Figure(figsize=(1.2 * (len(steps) + 1), 1.2 + 1.2 * count * high / wide), layout="constrained")
    figure.suptitle(f"From noise to the image: z after each {unit}", fontsize=16)
    axes = figure.add_subplot()
    show_image(axes, sheet)
    for column, title in enumerate(["original", "noise", *map(str, steps[1:])]):
        axes.text(
            column * wide + originals.shape[3] / 2 - 0.5, -0.05 * high, title, fontsize=14, ha="center", va="bottom"
        )
    return figure


def animate_rebuilding(originals: Tensor, rebuilt: Tensor, steps: Sequence[int], path: Path, *, unit: str) -> Path:
    """Animate six samples above the images that z shows step by step.

    Args:
        originals: samples as images [N, 1 or 3, H, W] in [0, 1].
        rebuilt: [S, N, 1 or 3, H, W] in [0, 1], the image after each of S steps.
        steps: S numbers of steps, 0 for the start.
        path: the GIF file.
        unit: the word for a step of inference, "block" or "step".

    Returns:
        The path.
    """
    count = min(_SAMPLES, len(originals))
    sheets = [mosaic([list(originals[:count]), list(now[:count])]) for now in rebuilt]
    figure = Figure(
        figsize=(1.5 * max(count, 4), 1 + 3 * originals.shape[2] / originals.shape[3]), layout="constrained"
    )
    axes = figure.add_subplot()
    show_image(axes, sheets[0])
    title = figure.suptitle(_moment(steps, -1, unit), fontsize=17)

    def show(frame: int) -> None:
        title.set_text(_moment(steps, frame, unit))
        axes.images[0].set_data(sheets[frame].permute(1, 2, 0).expand(-1, -1, 3).numpy())

    return write_animation(figure, [title, axes.images[0]], show, len(steps), path)


def mosaic(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Join rows of images to one image, with white between them.

    Args:
        rows: images [C, H, W], all of one size; as many in each row.

    Returns:
        One image [C, H', W'].
    """
    gap = max(1, max(rows[0][0].shape[1:]) // 14)
    framed = [torch.cat([F.pad(image, (0, gap, 0, gap), value=1.0) for image in row], dim=2) for row in rows]
    return torch.cat(framed, dim=1)


def _moment(steps: Sequence[int], frame: int, unit: str) -> str:
    """Return the title of a frame."""
    return "Start: noise" if frame == 0 else f"After {unit} {steps[frame]} of {steps[-1]}"
