"""Sequences: at each step the net predicts the next value. It is also judged by a longer forecast.

    loss         the mean over samples, steps t and components of (out_t - y_t)^2, where y_t is the true next value
    rollout      after a warm-up on true values, the net's output becomes its next input. This is the root of the mean
                 squared error over the rest of the window. For data with standard deviation 1 it is the NRMSE; 1.41 is
                 the value for two unrelated states
    valid_time   how long the error E(t) = sqrt(mean over components of (prediction - truth)^2) stays at most 0.4: the
                 mean over windows, in the unit of the data (Lyapunov times for `lorenz`, else steps). It cannot exceed
                 the length of a window

valid_time and its threshold are those of Pathak et al. 2018, "Hybrid forecasting of chaotic processes", Chaos 28,
041101, https://doi.org/10.1063/1.5028373: E(t) = |u - u'| / <|u|^2>^(1/2), f = 0.4, on data of mean 0. Values of others
can be compared only if they have the same threshold. rollout and valid_time need a net that can `step`
(`bpfree.nets.Recurrent`) and whose output has the width of its input; for other nets there is only the loss.
"""

from typing import Any, ClassVar, Literal, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.preprocess import Preprocess
from bpfree.data.split import Split
from bpfree.errors import UserError, check_positive
from bpfree.tasks.base import DataTask, form_of, widened
from bpfree.types import Batch

_WARMUP_PARTS = 4  # the warm-up is the first of so many equal parts of a window


class Stepping(Protocol):
    """A net that can compute one step at a time, as `bpfree.nets.Recurrent`."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the output [B, D] and the new state, for an input [B, F] and the old state (None at the start)."""
        ...


def can_step(net: nn.Module | None) -> TypeGuard[Stepping]:
    """Return True if a net can compute one step at a time: if it has a method `step`."""
    return callable(getattr(net, "step", None))


class Sequence(DataTask):
    """Mean squared error of predictions one step ahead; the module describes the further metrics of a split.

    Args:
        dim: D, the number of values of a step.
        warmup: the number of true values at the beginning of a window, before the net predicts from its own output.
        threshold: the largest error E(t) of a valid prediction.
        time_step: the length of a step, in the unit of valid_time.

    Raises:
        UserError: an option is not above 0.
    """

    name: ClassVar[str] = "sequence"
    answers = "numbers"
    values: ClassVar[bool] = True
    per_step: bool = True

    def __init__(self, dim: int, *, warmup: int = 1, threshold: float = 0.4, time_step: float = 1.0) -> None:
        for name, value in (("dim", dim), ("warmup", warmup), ("threshold", threshold), ("time_step", time_step)):
            check_positive(f"task.{name}", value)
        self._dim = dim
        self.warmup = warmup
        self.threshold = threshold
        self.time_step = time_step

    @classmethod
    def of(cls, data: Preprocess, *, warmup: int | Literal["auto"] = "auto", threshold: float = 0.4) -> "Sequence":
        """Make the task for a data set of windows.

        Args:
            data: the preprocessing of the data set, with the facts about its labels.
            warmup: the number of true values at the beginning of a window; "auto" is a quarter of the window.
            threshold: the largest error E(t) of a valid prediction.

        Raises:
            UserError: samples are not windows with a label for each step, or the warm-up is longer than a window.
        """
        shape = data.labels.answer_shape
        if len(data.shape) != 2 or len(shape) != 2 or data.shape[0] != shape[0]:
            raise UserError(
                f"task: found 'sequence' on samples {list(data.shape)} with labels {list(shape)}, allowed: "
                "[steps, values] and a label for each step, such as data=lorenz"
            )
        steps, dim = shape
        length = max(steps // _WARMUP_PARTS, 1) if warmup == "auto" else warmup
        if not 0 < length <= steps:
            raise UserError(f"task.warmup: found {length}, allowed: 1 to {steps}, the steps of a window")
        return cls(dim, warmup=length, threshold=threshold, time_step=data.labels.time_step)

    @property
    def dim(self) -> int:
        """The number D of values of one step."""
        return self._dim

    def prepare(self, split: Split) -> Split:
        """Return the split with labels as floating numbers."""
        return Split(split.x, split.y.float())

    def target(self, batch: Batch) -> Tensor:
        """Return the next values, [B*T, D], in the floating type of x."""
        return batch.y.to(batch.dtype).flatten(0, 1)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return values [B, T, D], or [B*T, D] if y has that shape, in float32 or wider.

        Raises:
            UserError: the output has another shape.
        """
        if not isinstance(out, Tensor) or out.shape != batch.y.shape:
            raise UserError(
                f"net: its output is {form_of(out)}, but the task has a target for each step, {list(batch.y.shape)}. "
                "Use net.name=gru net.each_step=true, or your own net with an output at each step"
            )
        return widened(out)

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error over samples, steps and components."""
        return F.mse_loss(out, batch.y.to(out.dtype))

    def decode(self, out: Tensor) -> Tensor:
        """Return the predictions [N, T, D] as they are."""
        return out

    def tally(self, net: nn.Module | None) -> "Rollouts | None":
        """Return an empty tally for `rollout` and `valid_time`; None if the net cannot `step`."""
        return Rollouts(self, net) if can_step(net) else None


class Rollouts:
    """Forecasts of a net on the windows of a split, and their errors.

    Args:
        task: gives warm-up, threshold and time step.
        net: a net that can `step`. If its output does not have the width of its input, it has no metrics.
    """

    def __init__(self, task: Sequence, net: Stepping) -> None:
        self.task = task
        self.net = net
        self.squares: list[Tensor] = []  # [B, K] for each batch

    def add(self, out: Tensor, batch: Batch) -> None:
        """Forecast the windows of a batch; their outputs one step ahead are not used."""
        if batch.tensor.shape[-1] != self.task.dim:  # the output cannot become the next input
            return
        # y_t is the value after x_t. So the first value after a warm-up of W steps is y at the place W - 1.
        seen, coming = batch.tensor[:, : self.task.warmup], batch.y[:, self.task.warmup - 1 :]
        predicted = closed_loop(self.net, seen, coming.shape[1])
        self.squares.append((predicted - coming).double().square().mean(2))

    def metrics(self) -> dict[str, float]:
        """Return `rollout` and `valid_time`; see the module."""
        if not self.squares:
            return {}
        squares = torch.cat(self.squares)  # [N, K]
        return {"rollout": float(squares.mean().sqrt()), "valid_time": float(self.valid_times(squares).mean())}

    def valid_times(self, squares: Tensor) -> Tensor:
        """Return how long each forecast is valid, [N], from squared errors [N, K], in the unit of `time_step`."""
        return valid_steps(squares, self.task.threshold) * self.task.time_step


def valid_steps(squares: Tensor, threshold: float) -> Tensor:
    """Return for how many steps the error of each forecast stays at most the threshold.

    Args:
        squares: squared errors [N, K].
        threshold: the largest error of a valid prediction.

    Returns:
        int64 [N], from 0 to K.

    Example:
        >>> valid_steps(torch.tensor([[0.0, 0.01, 9.0, 0.0]]), 0.4)
        tensor([2])
    """
    # The product is 0 from the first step above the threshold on, also if the error becomes small again by chance.
    good = squares.sqrt() <= threshold  # False for NaN, as of a net whose values overflow
    return good.long().cumprod(1).sum(1)  # [N]


@torch.no_grad()
def closed_loop(net: Stepping, seen: Tensor, steps: int) -> Tensor:
    """Return the forecast of a net whose output becomes its next input.

    Args:
        net: a net that can `step`. It runs in evaluation mode, and is left in the mode in which it came.
        seen: [B, W, D], true values for the warm-up, at least one.
        steps: K, the number of values to predict.

    Returns:
        [B, K, D]; the first value is the prediction for the step after `seen`.
    """
    assert isinstance(net, nn.Module)
    training = net.training
    # Dropout in one step would disturb all later steps of a forecast that feeds on itself.
    net.eval()
    try:
        state: Any = None
        for x in seen.unbind(1):  # [B, D]
            out, state = net.step(x, state)
        predicted = [out]
        for _ in range(steps - 1):
            out, state = net.step(out, state)
            predicted.append(out)
    finally:
        net.train(training)
    return torch.stack(predicted, 1)
