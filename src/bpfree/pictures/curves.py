"""Draw curves and maps of NoProp runs: a metric by step, losses by block, noise schedules, embeddings."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bpfree.diffusion import SCHEDULES, Schedule
from bpfree.pictures.labels import Named, label_points
from bpfree.pictures.plots import BLUE, GREY, ORANGE, class_color, label
from bpfree.pictures.trail import StepMetrics
from bpfree.training.listener import Record

_PERPLEXITY = 30.0  # of t-SNE, the usual value; with few samples it must be less
_STYLES = {"block": ("-", "viridis", 0.0, 0.9), "trunk": (":", "Oranges", 0.95, 0.5)}  # colours of first and last
_NAMES = {"block": "block", "trunk": "trunk layer"}


def plot_by_step(steps: StepMetrics, *, which: str, unit: str) -> Figure:
    """Plot the metric after each step of inference, and the metric of each block's own scores.

    Args:
        steps: the metrics.
        which: name of the samples in the title, such as "300 test samples".
        unit: the word for a step of inference, "block" or "step".

    Returns:
        The figure.
    """
    figure, axes = _one_panel()
    digits = ".3f" if steps.metric == "accuracy" else ".4f"
    for (kind, curve), color in zip(steps.outputs.items(), (BLUE, ORANGE), strict=True):
        text = f"prediction, {kind}: {curve[max(curve)]:{digits}}"
        axes.plot(list(curve), list(curve.values()), "o-", color=color, lw=2.5, label=text)
        block = steps.blocks[kind]
        # Some rules predict with the last block's scores: then both curves are one.
        if any(block[step] != curve[step] for step in block):
            name = f"scores of that {unit} alone, {kind}"
            axes.plot(list(block), list(block.values()), "s:", color=color, ms=5, label=name)
    alone = "block 1 alone" if unit == "block" else "one step alone"
    axes.axhline(steps.alone, color=GREY, ls="--", lw=2, label=f"{alone}: {steps.alone:{digits}}")
    title = f"{steps.metric.capitalize()} on {which} if inference ended after each {unit}"
    label(axes, title, x=f"{unit}s passed", y=steps.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.02 if steps.metric == "accuracy" else None)
    figure.legend(loc="outside lower center", ncols=2, fontsize=13)
    return figure


def plot_losses(history: Sequence[Record]) -> Figure:
    """Plot the training loss of each block over the epochs, and of each layer of a trunk that learns locally.

    Args:
        history: one record per epoch.

    Returns:
        The figure. Colours go from dark (first block) to light (last block).
    """
    figure, axes = _one_panel()
    losses: list[float] = []
    blocks = 0
    for kind, (style, colors, first, last) in _STYLES.items():
        begin = f"loss/{kind}"
        numbers = {int(n.removeprefix(begin)) for record in history for n in record["train"] if n.startswith(begin)}
        blocks = max(blocks, len(numbers) if kind == "block" else 0)
        for position, t in enumerate(sorted(numbers)):
            points = [(r["epoch"], r["train"][f"{begin}{t}"]) for r in history if f"{begin}{t}" in r["train"]]
            color = colormaps[colors](first + (last - first) * position / max(len(numbers) - 1, 1))
            marker = "o" if len(points) == 1 else ""  # a line through one point would be invisible
            axes.plot(
                *zip(*points, strict=True), style, color=color, lw=2.5, marker=marker, label=f"{_NAMES[kind]} {t}"
            )
            losses += [loss for _, loss in points]
    title = "Each block learns from its own loss" if blocks > 1 else "The loss of the one block"
    label(axes, title, x="epoch", y="training loss")
    axes.set_yscale("log" if min(losses) > 0 else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=12, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(axes.lines) // 17)
    return figure


@torch.no_grad()
def plot_schedules(schedules: Mapping[str, Schedule], *, steps: int | None = None) -> Figure:
    """Plot abar, log SNR and dSNR/dt of noise schedules over t, side by side.

    Args:
        schedules: by the name that the legend shows; at most three.
        steps: T, to mark the levels of T blocks; None for no marks.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle("Noise schedule, from noise (t = 0) to the label (t = 1)", fontsize=16)
    panels = figure.subplots(1, 3)
    for (name, schedule), color in zip(schedules.items(), (BLUE, ORANGE, GREY), strict=False):
        like = next(schedule.parameters(), torch.zeros(()))  # a learned schedule computes on its own device
        _draw_schedule(panels, schedule, torch.linspace(0, 1, 201).to(like), color=color, label=name)
        if steps is not None:
            marks = torch.linspace(0, 1, steps + 1).to(like)
            _draw_schedule(panels, schedule, marks, color=color, ls="", marker="o", label=f"the {steps} blocks")
    for axes, title in zip(panels, ("share of the label, abar(t)", "log SNR(t)", "dSNR/dt"), strict=True):
        label(axes, title, x="t")
        axes.grid(alpha=0.3)
    panels[2].set_yscale("log")
    panels[0].legend(fontsize=13)
    return figure


def all_schedules() -> dict[str, Schedule]:
    """Return one schedule of each kind, between the same ends; the learned one is untrained."""
    return {name: schedule(1e-3, 0.999) for name, schedule in SCHEDULES.items()}


def _draw_schedule(panels: Sequence[Axes], schedule: Schedule, times: Tensor, **style: object) -> None:
    """Draw a line in each panel; where abar is 0 at the start, log SNR is not finite and the start is left out."""
    if float(schedule.abar(times)[0]) == 0:
        panels[0].plot(times[:1].cpu(), [0.0], **{**style, "label": None})  # type: ignore[arg-type]
        times = times[1:]
    for axes, values in zip(panels, (schedule.abar(times), -schedule.gamma(times), schedule.dsnr(times)), strict=True):
        axes.plot(times.cpu().numpy(), values.cpu().numpy(), lw=2.5, **style)  # type: ignore[arg-type]


def plot_embeddings(embeddings: Tensor, z: Tensor, y: Tensor, *, which: str) -> Figure:
    """Plot class embeddings and ends of inference in two dimensions, by PCA and by t-SNE side by side.

    Args:
        embeddings: [C, E], at least two classes.
        z: [N, E], z at the end of inference; rows that are not finite are left out.
        y: [N], true classes.
        which: name of the samples in the title, such as "test samples".

    Returns:
        The figure.
    """
    finite = z.isfinite().all(1)
    z, y = z[finite], y[finite]
    points = torch.cat([embeddings, z]).double()  # [C + N, E]
    maps = {"PCA": principal(points), "t-SNE": neighbours(points)}
    figure = Figure(figsize=(13, 6))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.86, bottom=0.02, wspace=0.03)
    figure.suptitle(
        f"End of inference for {len(z)} {which} (dots, colour: true class) and class embeddings (rings)", fontsize=16
    )
    for axes, (name, places) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        label(axes, name)
        draw_classes(axes, places[: len(embeddings)], numbered=False)
        colors = [class_color(int(k), len(embeddings)) for k in y]
        axes.scatter(*places[len(embeddings) :].T, c=colors, s=22, alpha=0.75, linewidths=0)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.1)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        # Embeddings may lie on top of each other in the plane, so their numbers move aside.
        rings = enumerate(places[: len(embeddings)].tolist())
        label_points(axes, [Named(x, y, str(k), "black") for k, (x, y) in rings], size=13, radius=8)
    return figure


def draw_classes(axes: Axes, places: Tensor, *, numbered: bool = True) -> None:
    """Draw the embedding of each class as a ring in the colour of the class, with its number beside it.

    Args:
        axes: gets the rings.
        places: [C, 2], coordinates of the embeddings.
        numbered: False to leave out the numbers.
    """
    colors = [class_color(k, len(places)) for k in range(len(places))]
    axes.scatter(places[:, 0], places[:, 1], s=220, facecolors="none", edgecolors=colors, linewidths=2.5, zorder=3)
    if not numbered:
        return
    # Numbers stand on the outer side of their rings, since the dots of samples come from the middle.
    outwards = places - places.mean(0)
    offsets = (16 * outwards / outwards.norm(dim=1, keepdim=True).clamp_min(1e-12)).tolist()
    for k, (place, offset) in enumerate(zip(places.tolist(), offsets, strict=True)):
        text = axes.annotate(str(k), place, offset, textcoords="offset points", ha="center", va="center")
        text.set(fontsize=14, weight="bold", zorder=4)


def principal(points: Tensor) -> Tensor:
    """Return the coordinates of points along their first two principal components.

    Args:
        points: [N, E].

    Returns:
        [N, 2]; if E is 1, the second coordinate is 0.
    """
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    return torch.cat([places, places.new_zeros(len(places), 2 - places.shape[1])], dim=1)


def neighbours(points: Tensor) -> Tensor:
    """Return coordinates of points by t-SNE, which keeps neighbours together.

    Args:
        points: [N, E].

    Returns:
        [N, 2]; the same points always give the same coordinates.
    """
    from sklearn.manifold import TSNE

    # t-SNE starts from the principal components and not from random places, and so looks alike for similar runs. A
    # spread of 1e-4 is what scikit-learn itself uses for such a start.
    start = principal(points)
    start = 1e-4 * start / start[:, 0].std().clamp_min(torch.finfo(start.dtype).tiny)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start.numpy(), random_state=0)
    return torch.from_numpy(tsne.fit_transform(points.numpy()))


def _one_panel() -> tuple[Figure, Axes]:
    """Return a figure with one panel, in the proportions of a slide."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes
