"""HeadedRule: the base class of local rules that make a learned head for each hidden segment."""

from abc import abstractmethod

from torch import nn

from bpfree.grad import first_trainable
from bpfree.local.cut import Taps
from bpfree.local.rule import LocalRule
from bpfree.types import Batch, Task


class HeadedRule(LocalRule):
    """A local rule with a learned head for each hidden segment. A subclass defines `make_head`.

    Args:
        taps: submodules after which the graph is cut, as in `LocalRule`.

    Attributes:
        heads: the head of each hidden segment, which trains together with it; made by `bind`.
    """

    def __init__(self, *, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        self.heads = nn.ModuleList()

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the head of each hidden segment; see `LocalRule.bind`."""
        super().bind(net, task, batch)
        like = first_trainable(net)
        heads = [self.make_head(index, net, task, batch) for index in range(len(self.taps))]
        self.heads = nn.ModuleList(heads).to(device=like.device, dtype=like.dtype)

    @abstractmethod
    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return a new head for a hidden segment, whose `self.segments[index].shape` is that of the head's input.

        Args:
            index: number of the segment.
            net: the net that was cut.
            task: gives the width D of the output.
            batch: a first batch, for its shapes.
        """

    def head(self, index: int) -> nn.Module | None:
        """Return the head of a hidden segment, which is trained together with it."""
        return self.heads[index] if index < len(self.heads) else None
