"""The output of a net becomes the answers of the service, in plain values."""

from typing import Any

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.inputs import Inputs, one_tensor
from bpfree.runs.run import Run
from bpfree.serve.forms import Answer
from bpfree.tasks import Classify, Multilabel, Segment

_LIKELY = 0.5  # a label with a larger probability is among the answers


def answers_of(run: Run, out: Tensor, x: Inputs) -> list[Answer]:
    """Return the answers for the outputs of a net.

    Args:
        run: a trained run.
        out: its outputs, [N, ...].
        x: the raw samples [N, ...].

    Raises:
        UserError: an output is NaN or infinite.
    """
    if not bool(out.isfinite().all()):
        raise UserError(
            "samples: the answer of the net is NaN or infinite. Give values in the range of the training data"
        )
    if isinstance(run.task, Classify):
        return [of_probabilities(run, row) for row in run.task.probabilities(out)]
    if isinstance(run.task, Multilabel):
        names = run.preprocess.class_texts
        return [
            Answer(labels=[name for name, p in zip(names, row, strict=True) if p > _LIKELY], probabilities=row)
            for row in run.task.probabilities(out).tolist()
        ]
    decoded = run.task.decode(out)
    if isinstance(run.task, Segment):
        return [_of_pixels(run, pixels) for pixels in decoded]
    if run.task.rebuilds:
        errors = (decoded - run.preprocess.target(one_tensor(x))).flatten(1).square().mean(1).tolist()
        return [Answer(values=v, error=e) for v, e in zip(decoded.tolist(), errors, strict=True)]
    return [Answer(values=values) for values in decoded.tolist()]


def of_probabilities(run: Run, probabilities: Tensor) -> Answer:
    """Return the answer with the most likely class.

    Args:
        run: a run with the task classify.
        probabilities: [C].
    """
    index = int(probabilities.argmax())
    return Answer(label=run.preprocess.class_texts[index], index=index, probabilities=probabilities.tolist())


def _of_pixels(run: Run, pixels: Tensor) -> Answer:
    """Return the class of each pixel [H, W], and the share of the pixels that each class has."""
    counts = torch.bincount(pixels.flatten(), minlength=run.preprocess.classes)
    values: Any = pixels.tolist()
    return Answer(values=values, probabilities=(counts / counts.sum()).tolist())
