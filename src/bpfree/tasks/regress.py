"""Regression: the net predicts numbers."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.preprocess import Preprocess
from bpfree.data.split import Split
from bpfree.errors import UserError, check_choice
from bpfree.tasks.base import DataTask, form_of, widened
from bpfree.types import Batch

Loss = Literal["mse", "mae", "huber"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
"""Means over all values. huber is a parabola up to an error of one standard deviation, and a line beyond."""

_TINY = 1e-12  # variance below which a label counts as constant


class Regress(DataTask):
    """An error of numbers. The metrics are loss, and over a split also rmse and r2.

    Net and loss work in standardised units, (y - mean) / std with the mean and std of the training samples. `decode`
    and the metric rmse are in the units of the data.

    Args:
        mean: the mean of each of the D numbers, in the units of the data.
        std: the standard deviation of each of the D numbers, in the units of the data, above 0.
        loss: a name in LOSSES.
        flat: True if an answer is one number, [N], and not a list, [N, D].

    Raises:
        UserError: `loss` is not in LOSSES, or `std` does not fit `mean`.

    Example:
        >>> task = Regress(mean=(10.0,), std=(2.0,), flat=True)
        >>> task.decode(torch.tensor([[1.5]])).tolist()
        [13.0]
    """

    name: ClassVar[str] = "regress"
    answers = "numbers"
    values: ClassVar[bool] = True

    def __init__(
        self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), *, loss: Loss = "mse", flat: bool = False
    ) -> None:
        check_choice("loss", loss, LOSSES)
        if len(mean) != len(std) or not mean or not min(std) > 0:
            raise UserError(f"std: found {list(std)} for {len(mean)} means, allowed: as many numbers above 0")
        self.mean, self.std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.loss_name = loss
        self.flat = flat

    @classmethod
    def of(cls, data: Preprocess, *, loss: Loss = "mse") -> "Regress":
        """Make the task for a data set.

        Args:
            data: the preprocessing of the data set, with the facts about its labels: numbers [N] or [N, D], or classes
                without names, which are numbers, too.
            loss: a name in LOSSES.

        Raises:
            UserError: classes have names, or labels have more than two dimensions.
        """
        facts = data.labels
        if data.class_names is not None:
            raise UserError(
                "task: found 'regress' on classes that have names, allowed: numbers. For your own table or "
                "arrays give data.values=true"
            )
        if len(facts.answer_shape) > 1:
            raise UserError(
                f"task: found 'regress' on labels of shape {list(facts.answer_shape)}, allowed: a number for each "
                "sample, or a list of them. For numbers at each step use task=sequence"
            )
        return cls(facts.answer_mean, facts.answer_std, loss=loss, flat=not facts.answer_shape)

    @property
    def dim(self) -> int:
        """The number D of values that the net predicts."""
        return len(self.mean)

    def prepare(self, split: Split) -> Split:
        """Return the split with standardised labels, float32 [N, D]."""
        # In float64, because y - mean may be a small difference of large numbers, such as years.
        y = split.y.double().reshape(-1, self.dim)
        return Split(split.x, ((y - self.mean.to(y.device)) / self.std.to(y.device)).float())

    def target(self, batch: Batch) -> Tensor:
        """Return the standardised labels [B, D]."""
        return batch.y.to(batch.dtype)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the predicted numbers [B, D] in standardised units, in float32 or wider.

        Raises:
            UserError: the output has another shape.
        """
        if not isinstance(out, Tensor) or out.shape != (len(batch.y), self.dim):
            raise UserError(
                f"net: its output is {form_of(out)}, but {self.dim} numbers and a batch of {len(batch.y)} need "
                f"[{len(batch.y)}, {self.dim}]. End the net with a layer of {self.dim}"
            )
        return widened(out)

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean error over samples and numbers, in standardised units."""
        return LOSSES[self.loss_name](out, batch.y.reshape(out.shape).to(out.dtype))

    def tally(self, net: nn.Module | None) -> "Fit":
        """Return an empty tally for rmse and r2."""
        return Fit(self)

    def decode(self, out: Tensor) -> Tensor:
        """Return numbers in the units of the data, [N] or [N, D] as the labels were."""
        # In float64: for a label such as a year, a small std beside a large mean would lose digits in float32.
        values = (out.double() * self.std.to(out.device) + self.mean.to(out.device)).to(out.dtype)
        return values[:, 0] if self.flat else values

    def pair(self, out: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return output and target, both [B, D] and of one type."""
        out = self.check_output(out, batch)
        return out, batch.y.reshape(out.shape).to(out.dtype)


class Fit:
    """The metrics rmse and r2 of a split.

    rmse is sqrt(mean over the D numbers of the mean squared error), in the units of the data. r2 is 1 - squared error /
    variance of the split, a mean over the D numbers, as in scikit-learn's r2_score. A number that is constant has r2 0.

    Args:
        task: gives the units of outputs and targets.
    """

    def __init__(self, task: Regress) -> None:
        self.task = task
        self.sums = torch.zeros(3, task.dim, dtype=torch.float64)  # sums of squared errors, targets, squared targets
        self.samples = 0

    def add(self, out: Tensor, batch: Batch) -> None:
        """Add the outputs [B, D] of a batch."""
        predicted, y = (t.double() for t in self.task.pair(out.detach(), batch))
        sums = torch.stack([(predicted - y).square().sum(0), y.sum(0), y.square().sum(0)])
        self.sums = self.sums.to(sums.device) + sums
        self.samples += len(y)

    def metrics(self) -> dict[str, float]:
        """Return `rmse` and `r2` of all batches so far."""
        # One pass over the split: the variance comes from sums, which are float64 so that the difference is exact.
        squares, mean, square = (self.sums / self.samples).cpu()
        variance = square - mean.square()
        explained = torch.where(variance > _TINY, 1 - squares / variance.clamp_min(_TINY), 0.0)
        # Errors are in standardised units: times std^2 they are in those of the data. r2 is the same in both.
        return {"rmse": float((squares * self.task.std.square()).mean().sqrt()), "r2": float(explained.mean())}
