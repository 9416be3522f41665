"""Show values of samples as images with values in [0, 1]."""

import torch
from torch import Tensor

from bpfree.pictures.trained_run import TrainedRun


def as_images(run: TrainedRun, values: Tensor) -> Tensor | None:
    """Return samples or reconstructions as images, or None if they are not images.

    Args:
        run: knows the range of the training samples.
        values: [N, ...], in the range of `run.preprocess.target`.

    Returns:
        Images [N, 1 or 3, H, W] in [0, 1].
    """
    is_image = values.dim() == 4 and values.shape[1] in (1, 3)
    return on_unit_scale(run, values.float()) if is_image else None


def on_unit_scale(run: TrainedRun, values: Tensor) -> Tensor:
    """Map values from the range of the training samples to [0, 1]; NaN becomes 0.

    Args:
        run: knows the range of the training samples.
        values: of any shape, in the range of `run.preprocess.target`.
    """
    low, high = run.preprocess.limits
    # If all training samples are equal the range is empty, and the smallest number avoids a division by 0.
    return ((values - low) / max(high - low, torch.finfo(torch.float32).tiny)).nan_to_num().clamp(0, 1)
