"""Draw what happens inside a NoProp run: losses by block, metrics by step, and samples on their way from noise."""

from pathlib import Path

import torch

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule, LabelEmbedding, Schedule
from bpfree.pictures.curves import plot_by_step, plot_embeddings, plot_losses, plot_schedules
from bpfree.pictures.denoising import animate_predictions, animate_rebuilding, plot_predictions, plot_rebuilding
from bpfree.pictures.images import as_images, on_unit_scale
from bpfree.pictures.trail import affordable, diffusion_rule, follow, judge_steps
from bpfree.pictures.trained_run import TrainedRun
from bpfree.tasks import Reconstruct

_FOLLOWED = 200  # samples in the film
_EMBEDDED = 300  # samples in the map of embeddings; t-SNE takes long with more


def draw_diffusion(run: TrainedRun, folder: Path, split: Split | None) -> list[Path]:
    """Draw all pictures of a run whose rule is a DiffusionRule.

    Args:
        run: the trained run.
        folder: gets the pictures; it is made.
        split: samples to show; None leaves out the pictures that need samples.

    Returns:
        The paths of the pictures.
    """
    rule, written = diffusion_rule(run), []
    if any(name.startswith("loss/block") for record in run.metrics for name in record["train"]):
        written.append(plot_losses(run.metrics, folder / "loss_by_block.png"))
    schedule = getattr(rule, "schedule", None)
    if isinstance(schedule, Schedule):
        levels = getattr(rule, "levels", None)
        name = type(schedule).__name__.removesuffix("Schedule").lower()
        written.append(plot_schedules({name: schedule}, folder / "schedule.png", steps=levels and levels.steps))
    if split is None:
        return written
    which = "test samples" if split is run.test else "samples"
    split = split.take(torch.arange(min(affordable(run, split), len(split.y))))
    judged = judge_steps(run, split)
    path = folder / f"{judged.metric}_by_step.png"
    written.append(plot_by_step(judged, path, which=f"{len(split.y):,} {which}", unit=_unit(rule)))
    written += _draw_paths(run, folder, split, which)
    if isinstance(rule.embedding, LabelEmbedding):
        ends = follow(run, split, _EMBEDDED, stochastic=rule.inference == "stochastic")
        embeddings = rule.embedding.weight.detach().float().cpu()
        written.append(plot_embeddings(embeddings, ends.z[-1], ends.y, folder / "embeddings.png", which=which))
    return written


def _draw_paths(run: TrainedRun, folder: Path, split: Split, which: str) -> list[Path]:
    """Draw a picture and a film of samples on their way from noise; of reconstructions only if they are images."""
    rule = diffusion_rule(run)
    trail = follow(run, split, _FOLLOWED, stochastic=True)
    unit = _unit(rule)
    still, moving = folder / "denoising.png", folder / "denoising.gif"
    if isinstance(run.task, Reconstruct):
        originals = as_images(run, trail.y)
        if originals is None:
            return []
        rebuilt = on_unit_scale(run, torch.stack([run.task.decode(output) for output in trail.outputs]))
        return [
            plot_rebuilding(originals, rebuilt, trail.steps, still, unit=unit),
            animate_rebuilding(originals, rebuilt, trail.steps, moving, unit=unit),
        ]
    assert isinstance(rule.embedding, LabelEmbedding)
    images = as_images(run, run.preprocess.target(trail.x))
    embeddings = rule.embedding.weight.detach().float().cpu()
    return [
        plot_predictions(trail, images, still, which=which, unit=unit),
        animate_predictions(trail, images, embeddings, moving, which=which, unit=unit),
    ]


def _unit(rule: DiffusionRule) -> str:
    """Return the word for one step of inference: with time as an input the same block makes every step."""
    return "step" if rule.timed else "block"
