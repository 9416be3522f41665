"""What a classifier answers on samples: which classes it confuses, and where it is most surely wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from bpfree.data import Split
from bpfree.inputs import Inputs
from bpfree.pictures.noprop import as_images
from bpfree.pictures.plots import BLUE, show_image, write_figure

if TYPE_CHECKING:
    from bpfree.runs.run import Run

_SHOWN = 12  # wrong answers
_LONGEST = 16  # letters of a class name beside a map
_NUMBERED = 20  # classes; of more, a map has no figures in it
MOST_CLASSES = 500  # for which there is a table of all pairs
_CLEAR_BLUE = LinearSegmentedColormap.from_list(
    "clear blue", [to_rgba(BLUE, 0), to_rgba(BLUE, 1)]
)  # see-through where empty


class Answers(NamedTuple):
    """Answers on N samples of C classes.

    Attributes:
        x: [N, ...], raw samples, or several inputs.
        true: [N], their classes.
        said: [N], the answers.
        probability: [N], which the run gave to its answers.
        classes: C.
        names: of the classes; None if they are but numbers.
    """

    x: Inputs
    true: Tensor
    said: Tensor
    probability: Tensor
    classes: int
    names: tuple[str, ...] | None = None

    def name(self, label: int) -> str:
        """Of a class, for people to read."""
        return str(label) if self.names is None else self.names[label]

    def confusion(self) -> Tensor:
        """How often a sample of class i was taken for j, [C, C]."""
        return torch.bincount(self.true * self.classes + self.said, minlength=self.classes**2).view(self.classes, -1)

    def most_wrong(self, count: int = _SHOWN) -> Tensor:
        """Positions of the wrong answers that the run was surest of."""
        surest = self.probability.masked_fill(self.true == self.said, -1.0)
        wrong = int((self.true != self.said).sum())
        return surest.sort(descending=True, stable=True).indices[: min(count, wrong)]

    def images(self, run: "Run", positions: Tensor) -> Tensor | None:
        """The samples at some positions for people to look at; None if they are not images."""
        return as_images(run, run.preprocess.target(self.x[positions])) if isinstance(self.x, Tensor) else None


def answers_of(run: "Run", split: Split) -> Answers:
    """What a run that classifies says to each sample."""
    probabilities = run.predict_proba(split.x).nan_to_num()
    best = probabilities.max(1)
    return Answers(
        split.x, split.y.cpu(), best.indices, best.values, run.preprocess.classes, run.preprocess.class_names
    )


def draw_answers(run: "Run", split: Split, folder: Path) -> list[Path]:
    """confusion.png, and wrong.png if the samples are images and some answers are wrong; returns their paths."""
    answers, written = answers_of(run, split), []
    if answers.classes <= MOST_CLASSES:
        written.append(write_figure(confusion_figure(answers.confusion(), answers.names), folder / "confusion.png"))
    positions = answers.most_wrong()
    images = answers.images(run, positions)
    if images is None or not len(positions):
        (folder / "wrong.png").unlink(missing_ok=True)  # of an earlier look at this run
        return written
    return [*written, write_figure(_wrong_figure(answers, positions, images), folder / "wrong.png")]


def confusion_figure(matrix: Tensor, names: Sequence[str] | None = None) -> Figure:
    """True classes downwards, answers to the right; colours are shares of the true class, by their square root."""
    classes = len(matrix)
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).sqrt()
    figure = Figure(figsize=(4.8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap=_CLEAR_BLUE, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="answer", ylabel="true class")
    axes.spines[:].set_color("#b0b0b0")
    axes.tick_params(length=0)
    if classes <= _NUMBERED:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        if names is not None:
            shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026" for name in map(_plain, names)]
            axes.set_xticklabels(shown, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticklabels(shown)
        for i, j in matrix.nonzero().tolist():
            color = "white" if shares[i, j] > 0.85 else "black"
            size = 9 if classes <= 10 else 7
            axes.text(j, i, f"{int(matrix[i, j])}", ha="center", va="center", color=color, fontsize=size)
    return figure


def _wrong_figure(answers: Answers, positions: Tensor, images: Tensor) -> Figure:
    columns = min(6, len(positions))
    rows = -(-len(positions) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows + 0.5), layout="constrained")
    figure.suptitle("The wrong answers it was surest of", fontsize=12)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, position, image in zip(panels, positions.tolist(), images, strict=False):
        show_image(axes, image)
        probability = answers.probability[position]
        true, said = (_plain(answers.name(int(labels[position]))) for labels in (answers.true, answers.said))
        axes.set_title(f"{true}, not {said}\n({probability:.0%} sure)", fontsize=9)
    return figure


def _plain(name: str) -> str:
    """A name as matplotlib is to show it: a $ would begin a formula."""
    return name.replace("$", r"\$")
