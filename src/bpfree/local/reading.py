"""ReadingRule: the base class of local rules that learn from the scores of each segment, and can predict by them."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice
from bpfree.inputs import Inputs, forward
from bpfree.local.cut import Taps, cut
from bpfree.local.rule import LocalRule
from bpfree.types import Batch, Task

Read = Literal["net", "last", "sum"]
"""Where a prediction is read."""


class ReadingRule(LocalRule):
    """A local rule that learns from the scores of each hidden segment, and can predict by them.

    A subclass defines `scores`. Unless it changes `local_loss` too, a segment minimises the task's loss of its scores.

    Args:
        read: where a prediction is read: "net" (its output), "last" (scores of the last hidden segment) or "sum" (of
            all hidden segments, and of the output if the rule `sums_output` or there is no hidden segment).
        taps: submodules after which the graph is cut, as in `LocalRule`.

    Attributes:
        sums_output: True if "sum" adds the net's output.
        changes_features: True if the rule has a `pass_on` of its own. Then the net alone is not the trained net.
    """

    has_heads: ClassVar[bool] = True
    sums_output: ClassVar[bool] = True
    changes_features: ClassVar[bool] = False

    def __init__(self, *, read: Read = "net", taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_choice("read", read, ("net", "last", "sum"))
        self.read = read

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the segments; see `LocalRule.bind`.

        Raises:
            UserError: `read` asks for the scores of the last hidden segment, and the net has none.
        """
        super().bind(net, task, batch)
        if len(self.segments) < 2 and self.read == "last":
            raise UserError("read: found 'last', but the net has no hidden segment. Use read: net")

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the task's loss of the scores, 0-d."""
        scores = self.scores(index, h)
        assert scores is not None, "a subclass defines them"
        return self.task_loss(scores, signal)

    @property
    def predicts_with_net(self) -> bool:
        """True with `read: net`, if the rule does not change what passes from segment to segment."""
        return self.read == "net" and not self.changes_features

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return scores [B, D] from the place that `read` names."""
        if self.predicts_with_net:
            return super().predict(net, x)
        read: list[Tensor] = []

        def look(index: int, h: Tensor) -> Tensor:
            scores = None if self.read == "net" else self.scores(index, h)
            read.extend([] if scores is None else [scores])
            return self.pass_on(index, h)

        with cut(net, self.taps, look):
            out = forward(net, x)
        if self.read == "last":
            return read[-1]
        if self.read == "net" or self.sums_output or not read:
            read.append(out.view_as(read[-1]) if read else out)
        return torch.stack(read).sum(0)
