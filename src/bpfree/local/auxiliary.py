"""AuxiliaryRule: the base class of local rules whose segments learn from the task's loss through auxiliary nets."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from bpfree.inputs import Inputs
from bpfree.local.evenly import whole_stages
from bpfree.local.headed import HeadedRule


class AuxiliaryRule(HeadedRule):
    """A local rule that reads each hidden segment by a learned auxiliary net, its head.

        loss_k = task loss(head_k(h_k), y),    the gradient stops at the input of segment k

    A subclass defines `make_head`. The usual taps keep the read-out of the net together with its last stage, as the
    papers on auxiliary nets do. With `taps: 0` there is one segment, and the rule is backprop.

    A head turns features [B, ...] into scores [B, D]; with an answer for each pixel, into [B, C, H, W]. If the task
    has a target at each step, it takes the features of all steps, [B, T, ...], and returns [B, T, D].

    Args:
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage of a Sequential or block of another net is a segment.
    """

    has_heads: ClassVar[bool] = True
    keeps_steps: ClassVar[bool] = True

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str]:
        """Return the usual taps, with the read-out left at the last stage; see `LocalRule`."""
        return whole_stages(net, x)

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """Return the scores that the auxiliary net reads, in the shape of the net's output."""
        scores: Tensor = self.heads[index](h)
        return scores

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the task's loss of the scores, 0-d."""
        scores = self.scores(index, h)
        assert scores is not None, "a rule without scores has a loss of its own"
        return self.task_loss(scores.flatten(0, 1) if self.per_step else scores, signal)
