"""What the tasks in `bpfree.tasks.TASKS` have beyond `bpfree.types.Task`: a name, data, and answers for people."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor, nn

from bpfree.data.dataset import Split
from bpfree.types import Batch, Scalars


class Tally(Protocol):
    """Figures of a split that are no means over samples: told of batch by batch."""

    def add(self, out: Tensor, batch: Batch) -> None:
        """Outputs [B, D] of a batch."""
        ...

    def metrics(self) -> dict[str, float]:
        """What they come to."""
        ...


class DataTask(ABC):
    """A task that is made for a data set.

    Attributes:
        name: in the table; rules say by it which tasks they can do.
        rebuilds: whether samples are their own targets, so that labels are not needed.
        values: whether targets are numbers, not classes.
        per_step: whether the net answers at each step of a sequence, [B, T, D].
    """

    name: ClassVar[str]
    rebuilds: ClassVar[bool] = False
    values: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the width of the output."""

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """[B, D], or [B*T, D] if the task is `per_step`: what the output is to become."""

    @abstractmethod
    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """0-d, the mean over the batch; differentiable in `out`."""

    @abstractmethod
    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Detached means over the batch, among them `loss`."""

    @abstractmethod
    def decode(self, out: Tensor) -> Tensor:
        """Outputs [N, D] as answers: classes, samples or numbers in their own units."""

    def prepare(self, split: Split) -> Split:
        """The split with its answers in the units of the net's output; default: as it is."""
        return split

    def tally(self, net: nn.Module | None) -> Tally | None:
        """For a split to be judged by more than means over samples; default: no more.

        Args:
            net: whose outputs will be told; None if there are none but outputs.
        """
        return None
