"""Draw what happens inside a NoProp run: losses by block, metrics by step, and samples on their way from noise."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule, LabelEmbedding, Schedule
from bpfree.pictures.curves import plot_by_step, plot_embeddings, plot_losses, plot_schedules
from bpfree.pictures.denoising import animate_predictions, animate_rebuilding, plot_predictions, plot_rebuilding
from bpfree.pictures.images import as_images, on_unit_scale
from bpfree.pictures.plots import write_figure
from bpfree.pictures.trail import affordable, diffusion_rule, follow, judge_steps
from bpfree.pictures.trained_run import TrainedRun
from bpfree.tasks import Reconstruct

_FOLLOWED = 200  # samples in the film
_EMBEDDED = 300  # samples in the map of embeddings; t-SNE takes long with more


def draw_diffusion(run: TrainedRun, folder: Path, split: Split | None) -> dict[Path, Figure | None]:
    """Draw all pictures of a run whose rule is a DiffusionRule.

    Args:
        run: the trained run.
        folder: gets the pictures; it is made.
        split: samples to show; None leaves out the pictures that need samples.

    Returns:
        The figure of each picture by its path; None for a moving picture.
    """
    figures, written = _figures(run), dict[Path, Figure | None]()
    if split is not None:
        which = "test samples" if split is run.test else "samples"
        split = split.take(torch.arange(min(affordable(run, split), len(split.y))))
        film = folder / "denoising.gif"
        figures |= _figures_of_samples(run, split, which)
        if (still := _draw_path(run, split, which, film)) is not None:
            figures["denoising.png"] = still
            written[film] = None
    return written | {write_figure(figure, folder / name): figure for name, figure in figures.items()}


def _figures(run: TrainedRun) -> dict[str, Figure]:
    """Return the pictures that need no samples, by the names of their files."""
    rule, figures = diffusion_rule(run), {}
    if any(name.startswith("loss/block") for record in run.metrics for name in record["train"]):
        figures["loss_by_block.png"] = plot_losses(run.metrics)
    schedule = getattr(rule, "schedule", None)
    if isinstance(schedule, Schedule):
        levels = getattr(rule, "levels", None)
        name = type(schedule).__name__.removesuffix("Schedule").lower()
        figures["schedule.png"] = plot_schedules({name: schedule}, steps=levels and levels.steps)
    return figures


def _figures_of_samples(run: TrainedRun, split: Split, which: str) -> dict[str, Figure]:
    """Return the pictures of metrics by step and of embeddings, by the names of their files."""
    rule, judged = diffusion_rule(run), judge_steps(run, split)
    by_step = plot_by_step(judged, which=f"{len(split.y):,} {which}", unit=_unit(rule))
    figures = {f"{judged.metric}_by_step.png": by_step}
    if isinstance(rule.embedding, LabelEmbedding):
        ends = follow(run, split, _EMBEDDED, stochastic=rule.inference == "stochastic")
        embeddings = rule.embedding.weight.detach().float().cpu()
        figures["embeddings.png"] = plot_embeddings(embeddings, ends.z[-1], ends.y, which=which)
    return figures


def _draw_path(run: TrainedRun, split: Split, which: str, film: Path) -> Figure | None:
    """Draw a film of samples on their way from noise, and return a still picture; None if they are not images."""
    rule = diffusion_rule(run)
    trail = follow(run, split, _FOLLOWED, stochastic=True)
    unit = _unit(rule)
    if isinstance(run.task, Reconstruct):
        originals = as_images(run, trail.y)
        if originals is None:
            return None
        rebuilt = on_unit_scale(run, torch.stack([run.task.decode(output) for output in trail.outputs]))
        animate_rebuilding(originals, rebuilt, trail.steps, film, unit=unit)
        return plot_rebuilding(originals, rebuilt, trail.steps, unit=unit)
    assert isinstance(rule.embedding, LabelEmbedding)
    images = as_images(run, run.preprocess.target(trail.x))
    embeddings = rule.embedding.weight.detach().float().cpu()
    animate_predictions(trail, images, embeddings, film, which=which, unit=unit)
    return plot_predictions(trail, images, which=which, unit=unit)


def _unit(rule: DiffusionRule) -> str:
    """Return the word for one step of inference: with time as an input the same block makes every step."""
    return "step" if rule.timed else "block"
