"""Curves and maps of NoProp runs: quality by step, loss by block, noise schedules, embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bpfree.diffusion import SCHEDULES, Schedule
from bpfree.pictures.plots import BLUE, GREY, ORANGE, class_color, label, write_figure
from bpfree.trackers import Record

if TYPE_CHECKING:
    from bpfree.pictures.noprop import Steps

_PERPLEXITY = 30.0  # of t-SNE; few samples take less
_STYLES = {"block": ("-", "viridis", 0.0, 0.9), "trunk": (":", "Oranges", 0.95, 0.5)}  # colours of first and last
_NAMES = {"block": "block", "trunk": "trunk layer"}


def plot_by_step(steps: "Steps", path: Path, *, which: str, unit: str) -> Path:
    """The metric after each step, of answers and of each block by itself, beside one look at the sample.

    Args:
        steps: the figures.
        path: of the PNG.
        which: whose they are, such as "test samples".
        unit: what makes a step, "block" or "step".
    """
    figure, axes = _sheet()
    own = f"the {unit}'s own scores"
    shown = ".3f" if steps.metric == "accuracy" else ".4f"
    for (kind, curve), color in zip(steps.answers.items(), (BLUE, ORANGE), strict=True):
        text = f"answer, {kind}: {curve[max(curve)]:{shown}}"
        axes.plot(list(curve), list(curve.values()), "o-", color=color, lw=2.5, label=text)
        block = steps.blocks[kind]
        if any(block[step] != curve[step] for step in block):
            axes.plot(list(block), list(block.values()), "s:", color=color, ms=5, label=f"{own}, {kind}")
    alone = "block 1 alone" if unit == "block" else "one step alone"
    axes.axhline(steps.alone, color=GREY, ls="--", lw=2, label=f"{alone}: {steps.alone:{shown}}")
    title = f"{steps.metric.capitalize()} on {which} if inference ended after each {unit}"
    label(axes, title, x=f"{unit}s passed", y=steps.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.02 if steps.metric == "accuracy" else None)
    figure.legend(loc="outside lower center", ncols=2, fontsize=13)
    return write_figure(figure, path)


def plot_losses(history: Sequence[Record], path: Path) -> Path:
    """The training loss of each block over the epochs, first to last from dark to light, and of each local stage.

    Args:
        history: records of the epochs.
        path: of the PNG.
    """
    figure, axes = _sheet()
    losses: list[float] = []
    blocks = 0
    for kind, (style, colors, first, last) in _STYLES.items():
        begin = f"loss/{kind}"
        found = {int(n.removeprefix(begin)) for record in history for n in record["train"] if n.startswith(begin)}
        blocks = max(blocks, len(found) if kind == "block" else 0)
        for number, t in enumerate(sorted(found)):
            points = [(r["epoch"], r["train"][f"{begin}{t}"]) for r in history if f"{begin}{t}" in r["train"]]
            color = colormaps[colors](first + (last - first) * number / max(len(found) - 1, 1))
            marker = "o" if len(points) == 1 else ""
            axes.plot(
                *zip(*points, strict=True), style, color=color, lw=2.5, marker=marker, label=f"{_NAMES[kind]} {t}"
            )
            losses += [loss for _, loss in points]
    title = "Each block learns by itself, from a loss of its own" if blocks > 1 else "The loss of the one block"
    label(axes, title, x="epoch", y="training loss")
    axes.set_yscale("log" if min(losses) > 0 else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=12, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(axes.lines) // 17)
    return write_figure(figure, path)


@torch.no_grad()
def plot_schedules(schedules: Mapping[str, Schedule], path: Path, *, steps: int | None = None) -> Path:
    """abar, log SNR and dSNR/dt of noise schedules over t, side by side.

    Args:
        schedules: by name.
        path: of the PNG.
        steps: T, to mark the levels of T blocks; None for no marks.
    """
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle("How the noise gives way to the label, from t = 0 to 1", fontsize=16)
    panels = figure.subplots(1, 3)
    for (name, schedule), color in zip(schedules.items(), (BLUE, ORANGE, GREY), strict=False):
        like = next(schedule.parameters(), torch.zeros(()))
        _draw_schedule(panels, schedule, torch.linspace(0, 1, 201).to(like), color=color, label=name)
        if steps is not None:
            marks = torch.linspace(0, 1, steps + 1).to(like)
            _draw_schedule(panels, schedule, marks, color=color, ls="", marker="o", label=f"the {steps} blocks")
    for axes, title in zip(panels, ("share of the label, abar(t)", "log SNR(t)", "dSNR/dt"), strict=True):
        label(axes, title, x="t")
        axes.grid(alpha=0.3)
    panels[2].set_yscale("log")
    panels[0].legend(fontsize=13)
    return write_figure(figure, path)


def all_schedules() -> dict[str, Schedule]:
    """One of each kind between the same ends; the learned one as it is before it learns."""
    return {name: schedule(1e-3, 0.999) for name, schedule in SCHEDULES.items()}


def _draw_schedule(panels: Sequence[Axes], schedule: Schedule, times: Tensor, **style: object) -> None:
    """A line in each panel, without the start if there is no label in it and SNR is 0."""
    if float(schedule.abar(times)[0]) == 0:
        panels[0].plot(times[:1].cpu(), [0.0], **{**style, "label": None})  # type: ignore[arg-type]
        times = times[1:]
    for axes, values in zip(panels, (schedule.abar(times), -schedule.gamma(times), schedule.dsnr(times)), strict=True):
        axes.plot(times.cpu().numpy(), values.cpu().numpy(), lw=2.5, **style)  # type: ignore[arg-type]


def plot_embeddings(embeddings: Tensor, z: Tensor, y: Tensor, path: Path, *, which: str) -> Path:
    """The embeddings of the classes and where inference ends, in two dimensions by PCA and by t-SNE, side by side.

    Args:
        embeddings: [C, E], at least two classes.
        z: [N, E], ends of inference; those that are not finite are left out.
        y: [N], true classes.
        path: of the PNG.
        which: whose ends they are, such as "test samples".
    """
    finite = z.isfinite().all(1)
    z, y = z[finite], y[finite]
    points = torch.cat([embeddings, z]).double()
    maps = {"PCA": principal(points), "t-SNE": neighbours(points)}
    figure = Figure(figsize=(13, 6))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.86, bottom=0.02, wspace=0.03)
    figure.suptitle(
        f"Where inference ends for {len(z)} {which} (dots, coloured by true class) and each class (ring)", fontsize=16
    )
    for axes, (name, places) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        label(axes, name)
        draw_classes(axes, places[: len(embeddings)])
        colors = [class_color(int(k), len(embeddings)) for k in y]
        axes.scatter(*places[len(embeddings) :].T, c=colors, s=22, alpha=0.75, linewidths=0)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.08)
    return write_figure(figure, path)


def draw_classes(axes: Axes, places: Tensor) -> None:
    """The embedding of each class [C, 2] as a ring of its colour, its number beside it."""
    colors = [class_color(k, len(places)) for k in range(len(places))]
    axes.scatter(places[:, 0], places[:, 1], s=220, facecolors="none", edgecolors=colors, linewidths=2.5, zorder=3)
    outwards = places - places.mean(0)
    offsets = (16 * outwards / outwards.norm(dim=1, keepdim=True).clamp_min(1e-12)).tolist()
    for k, (place, offset) in enumerate(zip(places.tolist(), offsets, strict=True)):
        text = axes.annotate(str(k), place, offset, textcoords="offset points", ha="center", va="center")
        text.set(fontsize=14, weight="bold", zorder=4)


def principal(points: Tensor) -> Tensor:
    """The coordinates [N, 2] of points [N, E] along the two directions in which they differ most."""
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    return torch.cat([places, places.new_zeros(len(places), 2 - places.shape[1])], dim=1)


def neighbours(points: Tensor) -> Tensor:
    """Places [N, 2] of points [N, E] by t-SNE, which keeps neighbours together, from their principal components."""
    from sklearn.manifold import TSNE

    start = principal(points)
    start = 1e-4 * start / start[:, 0].std().clamp_min(torch.finfo(start.dtype).tiny)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start.numpy(), random_state=0)
    return torch.from_numpy(tsne.fit_transform(points.numpy()))


def _sheet() -> tuple[Figure, Axes]:
    """One panel for a slide."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes
