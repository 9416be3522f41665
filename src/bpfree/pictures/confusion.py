"""Show which classes a classifier confuses, and its wrong predictions with the highest probability."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bpfree.data import Split
from bpfree.inputs import Inputs
from bpfree.pictures.images import as_images
from bpfree.pictures.plots import CLEAR_BLUE, plain, show_image, write_figure
from bpfree.pictures.trained_run import TrainedRun

_SHOWN = 12  # wrong predictions
_LONGEST = 16  # letters of a class name beside the matrix
_NUMBERED = 20  # classes; with more, the cells of the matrix have no room for numbers
MOST_CLASSES = 500  # with more, no matrix is drawn: its cells would be smaller than a pixel


class ClassPredictions(NamedTuple):
    """Predicted and true classes of N samples.

    Attributes:
        x: [N, ...], raw samples, or several inputs.
        true: [N], their classes.
        predicted: [N], the classes with the highest probability.
        probability: [N], the probability of the predicted class.
        classes: C, the number of classes.
        names: names of the classes; None if they only have numbers.
    """

    x: Inputs
    true: Tensor
    predicted: Tensor
    probability: Tensor
    classes: int
    names: tuple[str, ...] | None = None

    def name(self, label: int) -> str:
        """Return the name of a class, or its number if it has no name.

        Args:
            label: the class, from 0 on.
        """
        return str(label) if self.names is None else self.names[label]

    def confusion(self) -> Tensor:
        """Return the confusion matrix [C, C]: how many samples of class i (row) were predicted as class j (column)."""
        pairs = self.true * self.classes + self.predicted  # [N], one number for each pair of classes
        return torch.bincount(pairs, minlength=self.classes**2).view(self.classes, -1)

    def most_wrong(self, count: int = _SHOWN) -> Tensor:
        """Return the positions of the wrong predictions with the highest probability, highest first.

        Args:
            count: most positions that are returned.
        """
        surest = self.probability.masked_fill(self.true == self.predicted, -1.0)
        wrong = int((self.true != self.predicted).sum())
        # A stable sort: the same run must give the same report to the byte, also if probabilities are equal.
        return surest.sort(descending=True, stable=True).indices[: min(count, wrong)]

    def images(self, run: TrainedRun, positions: Tensor) -> Tensor | None:
        """Return the samples at some positions as images [K, 1 or 3, H, W] in [0, 1]; None if they are not images.

        Args:
            run: knows the range of the samples.
            positions: [K], of the N samples.
        """
        return as_images(run, run.preprocess.target(self.x[positions])) if isinstance(self.x, Tensor) else None


def predict_classes(run: TrainedRun, split: Split) -> ClassPredictions:
    """Predict the class of each sample of a split.

    Args:
        run: its task is to classify.
        split: raw samples and their classes.
    """
    probabilities = run.predict_proba(split.x).nan_to_num()  # of a net that diverged, NaN would have no maximum
    best = probabilities.max(1)
    return ClassPredictions(
        split.x, split.y.cpu(), best.indices, best.values, run.preprocess.classes, run.preprocess.class_names
    )


def draw_confusion(run: TrainedRun, split: Split, folder: Path) -> list[Path]:
    """Draw confusion.png, and wrong.png if samples are images and some predictions are wrong.

    Args:
        run: its task is to classify.
        split: samples to predict.
        folder: gets the pictures.

    Returns:
        The paths of the pictures.
    """
    predictions = predict_classes(run, split)
    written = []
    if predictions.classes <= MOST_CLASSES:
        figure = confusion_figure(predictions.confusion(), predictions.names)
        written.append(write_figure(figure, folder / "confusion.png"))
    positions = predictions.most_wrong()
    images = predictions.images(run, positions)
    if images is None or not len(positions):
        (folder / "wrong.png").unlink(missing_ok=True)  # an earlier drawing, with other samples, may have left one
        return written
    return [*written, write_figure(_wrong_figure(predictions, positions, images), folder / "wrong.png")]


def confusion_figure(matrix: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Draw a confusion matrix: true classes in rows, predicted classes in columns.

    Args:
        matrix: [C, C], numbers of samples.
        names: names of the classes; None shows their numbers.

    Returns:
        The figure. A cell's colour is the square root of its share of the true class, so that rare mistakes are seen.
    """
    classes = len(matrix)
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).sqrt()
    figure = Figure(figsize=(4.8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap=CLEAR_BLUE, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_color("#b0b0b0")
    axes.tick_params(length=0)
    if classes <= _NUMBERED:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        if names is not None:
            labels = [_short(name) for name in names]
            axes.set_xticklabels(labels, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticklabels(labels)
        for i, j in matrix.nonzero().tolist():
            color = "white" if shares[i, j] > 0.85 else "black"
            size = 9 if classes <= 10 else 7
            axes.text(j, i, f"{int(matrix[i, j])}", ha="center", va="center", color=color, fontsize=size)
    return figure


def _wrong_figure(predictions: ClassPredictions, positions: Tensor, images: Tensor) -> Figure:
    columns = min(6, len(positions))
    rows = -(-len(positions) // columns)
    figure = Figure(figsize=(1.75 * columns, 2.2 * rows + 0.5), layout="constrained")
    figure.suptitle("Wrong predictions with the highest probability of the predicted class", fontsize=13)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, position, image in zip(panels, positions.tolist(), images, strict=False):
        show_image(axes, image)
        true, predicted = (
            _short(predictions.name(int(labels[position]))) for labels in (predictions.true, predictions.predicted)
        )
        probability = predictions.probability[position]
        axes.set_title(f"true {true}\npredicted {predicted}, {100 * probability:.0f} %", fontsize=9.5)
    return figure


def _short(name: str) -> str:
    """Return a class name, shortened to the room beside a matrix or above an image."""
    return plain(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026")
