"""Draw all pictures of a run into its folder.

The modules that draw are imported when there is something to draw: a training without a folder does not import
matplotlib, which takes about half a second.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule
from bpfree.disk.atomic import refuse_to_replace
from bpfree.pictures.trained_run import TrainedRun
from bpfree.tasks import Classify, Reconstruct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING_PLOT = "training.png"


def draw(run: TrainedRun, folder: Path, split: Split | None = None) -> list[Path]:
    """Draw training curves, records of trackers, and predictions for samples.

    Args:
        run: the trained run.
        folder: gets the pictures; it is made.
        split: samples to show; None leaves out the pictures that need samples.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: a picture cannot be written, or the folder is a link, which may lead anywhere.
    """
    return list(draw_figures(run, folder, split))


def draw_figures(run: TrainedRun, folder: Path, split: Split | None = None) -> dict[Path, "Figure | None"]:
    """Draw the same pictures as `draw`, and return the figures of a NoProp run too, since they take long to draw.

    Args:
        run: the trained run.
        folder: gets the pictures; it is made.
        split: samples to show; None leaves out the pictures that need samples.

    Returns:
        The figures by the paths of the pictures; None for pictures that move, or are quickly drawn again.

    Raises:
        UserError: a picture cannot be written, or the folder is a link, which may lead anywhere.
    """
    refuse_to_replace(folder, folder=True)
    from bpfree.pictures.confusion import draw_confusion
    from bpfree.pictures.noprop import draw_diffusion
    from bpfree.pictures.numbers import draw_numbers
    from bpfree.pictures.plots import plot_tracked, plot_training

    written = [plot_training(run.metrics, folder / TRAINING_PLOT), *plot_tracked(run.tracked, folder)]
    if split is not None and isinstance(run.task, Classify):
        written += draw_confusion(run, split, folder)
    if split is not None and isinstance(run.task, Reconstruct):
        written += _draw_reconstructions(run, split, folder)
    if split is not None:
        written += draw_numbers(run, split, folder)
    figures: dict[Path, Figure | None] = dict.fromkeys(written)
    if isinstance(run.trainer.rule, DiffusionRule):
        figures |= draw_diffusion(run, folder, split)
    return figures


def _draw_reconstructions(run: TrainedRun, split: Split, folder: Path) -> list[Path]:
    """Draw ten samples above their reconstructions, if samples are images."""
    from bpfree.pictures.plots import plot_images

    samples = split.take(torch.arange(min(10, len(split.y)))).tensor
    if samples.dim() != 4 or samples.shape[1] not in (1, 3):
        return []
    return [plot_images([run.preprocess.target(samples), run.predict(samples)], folder / "reconstructions.png")]
