"""All pictures of a run, into its folder.

What draws is imported when there is something to draw: a training without a folder does without matplotlib.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule
from bpfree.disk.atomic import refuse_to_replace
from bpfree.tasks import Classify, Reconstruct

if TYPE_CHECKING:
    from bpfree.runs.run import Run

TRAINING_PLOT = "training.png"


def draw(run: "Run", folder: Path, split: Split | None = None) -> list[Path]:
    """Curves, what trackers measured, and what can be seen on samples.

    Args:
        run: trained.
        folder: gets the pictures; it is made.
        split: samples to look at; None for none.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: a picture cannot be written, or the folder is a link, which may lead anywhere.
    """
    refuse_to_replace(folder, folder=True)
    from bpfree.pictures.confusion import draw_answers
    from bpfree.pictures.noprop import draw_diffusion
    from bpfree.pictures.numbers import draw_numbers
    from bpfree.pictures.plots import plot_tracked, plot_training

    written = [plot_training(run.metrics, folder / TRAINING_PLOT), *plot_tracked(run.tracked, folder)]
    if split is not None and isinstance(run.task, Classify):
        written += draw_answers(run, split, folder)
    if split is not None and isinstance(run.task, Reconstruct):
        written += _draw_rebuilt(run, split, folder)
    if split is not None:
        written += draw_numbers(run, split, folder)
    if isinstance(run.trainer.rule, DiffusionRule):
        written += draw_diffusion(run, folder, split)
    return written


def _draw_rebuilt(run: "Run", split: Split, folder: Path) -> list[Path]:
    """Ten samples above what the net makes of them, if they are images."""
    from bpfree.pictures.plots import plot_images

    samples = split.take(torch.arange(min(10, len(split.y)))).tensor
    if samples.dim() != 4 or samples.shape[1] not in (1, 3):
        return []
    return [plot_images([run.preprocess.target(samples), run.predict(samples)], folder / "reconstructions.png")]
