"""Sequences: at each step the net tells the next, and is judged by how far its own predictions carry as well.

    loss         mean over samples, steps t and components of (out_t - y_t)^2, with y_t the true next value
    rollout      after a warm-up on true values the net's output becomes its next input; the root of the mean squared
                 error over the rest of the window. On data of spread 1 that is the NRMSE; 1.41 is two unrelated states
    valid_time   how long the error E(t) = sqrt(mean over components of (prediction - truth)^2) stays at most 0.4, a
                 mean over windows, in the data's own unit of time (Lyapunov times for `lorenz`, else steps); a window
                 ends the count

valid_time and its threshold are those of Pathak et al. 2018, "Hybrid forecasting of chaotic processes", Chaos 28,
041101, https://doi.org/10.1063/1.5028373: E(t) = |u - u'| / <|u|^2>^(1/2), f = 0.4, on data of mean 0; to be read
against the values of others only with that threshold. Both need a net that can `step` (`bpfree.nets.Recurrent`) and an
output like its input; else the loss is all there is.
"""

from typing import Any, ClassVar, Literal, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.dataset import Preprocess, Split
from bpfree.errors import UserError, check_positive
from bpfree.tasks.base import DataTask, form_of, widened
from bpfree.types import Batch, Scalars

_SEEN = 4  # a window's part of which the first is the warm-up


class Stepping(Protocol):
    """A net that can go on by one step, as `bpfree.nets.Recurrent`."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """[B, F] and the state behind it (None at the start) -> output [B, D] and the new state."""
        ...


def can_step(net: nn.Module | None) -> TypeGuard[Stepping]:
    """Whether a net can go on by one step: whether it has a method `step`."""
    return callable(getattr(net, "step", None))


class Sequence(DataTask):
    """Mean squared one-step error; see the module for what else is told of a split.

    Args:
        dim: D, values of a step.
        warmup: true values at the beginning of a window before the net goes on by itself.
        threshold: of the error up to which a prediction is valid.
        time_step: how long a step is, in the unit in which valid_time is told.
    """

    name: ClassVar[str] = "sequence"
    answers = "numbers"
    values: ClassVar[bool] = True
    per_step: ClassVar[bool] = True

    def __init__(self, dim: int, *, warmup: int = 1, threshold: float = 0.4, time_step: float = 1.0) -> None:
        for name, value in (("dim", dim), ("warmup", warmup), ("threshold", threshold), ("time_step", time_step)):
            check_positive(f"task.{name}", value)
        self._dim = dim
        self.warmup = warmup
        self.threshold = threshold
        self.time_step = time_step

    @classmethod
    def of(cls, data: Preprocess, *, warmup: int | Literal["auto"] = "auto", threshold: float = 0.4) -> "Sequence":
        """For a data set of windows; an "auto" warm-up is a quarter of them."""
        if len(data.shape) != 2 or len(data.answer_shape) != 2 or data.shape[0] != data.answer_shape[0]:
            raise UserError(
                f"task: found 'sequence' on samples {list(data.shape)} with labels {list(data.answer_shape)}, allowed: "
                "[steps, values] and a label for each step, such as data=lorenz"
            )
        steps, dim = data.answer_shape
        seen = max(steps // _SEEN, 1) if warmup == "auto" else warmup
        if not 0 < seen <= steps:
            raise UserError(f"task.warmup: found {seen}, allowed: 1 to {steps}, the steps of a window")
        return cls(dim, warmup=seen, threshold=threshold, time_step=data.time_step)

    @property
    def dim(self) -> int:
        """D, of one step."""
        return self._dim

    def prepare(self, split: Split) -> Split:
        """Labels as floats."""
        return Split(split.x, split.y.float())

    def target(self, batch: Batch) -> Tensor:
        """The next values, [B*T, D]."""
        return batch.y.to(batch.dtype).flatten(0, 1)

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Values [B, T, D], or [B*T, D] for a y of that shape.

        Raises:
            UserError: the output has another shape.
        """
        if not isinstance(out, Tensor) or out.shape != batch.y.shape:
            raise UserError(
                f"net: its output is {form_of(out)}, but the task has a target for each step, {list(batch.y.shape)}. "
                "Use net.name=gru net.each_step=true, or a net of your own that answers at each step"
            )
        return widened(out)

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(out, batch.y.to(out.dtype))

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """`loss`, detached."""
        return {"loss": self.loss(out.detach(), batch)}

    def decode(self, out: Tensor) -> Tensor:
        """The predictions [N, T, D] as they are."""
        return out

    def tally(self, net: nn.Module | None) -> "Rollouts | None":
        """`rollout` and `valid_time`, if the net can go on by itself."""
        return Rollouts(self, net) if can_step(net) else None


class Rollouts:
    """How far the predictions of a net carry on a split.

    Args:
        task: says where the net begins to go on by itself.
        net: that can step; None of the figures if its output is unlike its input.
    """

    def __init__(self, task: Sequence, net: Stepping) -> None:
        self.task = task
        self.net = net
        self.squares: list[Tensor] = []  # [B, K]

    def add(self, out: Tensor, batch: Batch) -> None:
        """The windows of a batch; their one-step predictions are not needed."""
        if batch.tensor.shape[-1] != self.task.dim:
            return
        seen, coming = batch.tensor[:, : self.task.warmup], batch.y[:, self.task.warmup - 1 :]
        predicted = closed_loop(self.net, seen, coming.shape[1])
        self.squares.append((predicted - coming).double().square().mean(2))

    def metrics(self) -> dict[str, float]:
        """See the module."""
        if not self.squares:
            return {}
        squares = torch.cat(self.squares)  # [N, K]
        return {"rollout": float(squares.mean().sqrt()), "valid_time": float(self.valid_times(squares).mean())}

    def valid_times(self, squares: Tensor) -> Tensor:
        """How long each rollout is valid, [N], of squared errors [N, K]."""
        return valid_steps(squares, self.task.threshold) * self.task.time_step


def valid_steps(squares: Tensor, threshold: float) -> Tensor:
    """For how many steps the error of each rollout stays at most the threshold, [N], of squared errors [N, K]."""
    good = squares.sqrt() <= threshold  # NaN is not
    return good.long().cumprod(1).sum(1)


@torch.no_grad()
def closed_loop(net: Stepping, seen: Tensor, steps: int) -> Tensor:
    """What a net predicts, in evaluation mode, when its output becomes its next input.

    Args:
        net: left in the mode in which it came.
        seen: [B, W, D], true values to warm up on, at least one.
        steps: K.

    Returns:
        [B, K, D]; the first is the prediction of what follows `seen`.
    """
    assert isinstance(net, nn.Module)
    training = net.training
    net.eval()
    try:
        state: Any = None
        for x in seen.unbind(1):
            out, state = net.step(x, state)
        predicted = [out]
        for _ in range(steps - 1):
            out, state = net.step(out, state)
            predicted.append(out)
    finally:
        net.train(training)
    return torch.stack(predicted, 1)
