"""Direct feedback alignment.

Nokland 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", https://arxiv.org/abs/1609.01596

    d_l = (e B_l) * f'(a_l),    e = dLoss/dlogits [B, C],    B_l [C, H_l] fixed and random

The output error goes to every hidden layer directly, through a matrix of its own. The signal e B_l enters at the tap,
behind the activation; what lies within the segment (f', batch norm) contributes its true local derivative.

Where we differ: e is that of the mean loss, (softmax - Y)/B, so the size of a step does not grow with the batch as in
public code; `signal_scale` multiplies it.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import check_choice
from bpfree.feedback import FEEDBACKS, feedback_matrix
from bpfree.rule import LocalRule, trainable
from bpfree.types import Batch, Task


class DFA(LocalRule):
    """Direct feedback alignment.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.feedback.FEEDBACKS`.
        signal_scale: multiplies the hidden signal.
        memory: "fast" keeps the activations of one forward pass; "flat" runs the net twice instead, in the memory of
            one segment, and comes to the same weights.
        taps: submodules after which the graph is cut; default: the stages of a Sequential.
    """

    needs_error: ClassVar[bool] = True

    def __init__(
        self,
        *,
        feedback: Literal["uniform", "kaiming", "xavier", "lecun", "orthogonal"] = "uniform",
        signal_scale: float = 1.0,
        memory: Literal["fast", "flat"] = "fast",
        taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__(taps=taps)
        check_choice("feedback", feedback, FEEDBACKS)
        check_choice("memory", memory, ("fast", "flat"))
        self.feedback = feedback
        self.signal_scale = signal_scale
        self.memory = memory

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Draw B_l [D, H_l] for every hidden segment, as the buffer `B<l>`."""
        super().bind(net, task, batch)
        self._buffers.clear()  # of an earlier net
        like = trainable(net)[0]
        for index, segment in enumerate(self.segments[:-1]):
            matrix = feedback_matrix(self.feedback, task.dim, segment.shape.numel(), like)
            self.register_buffer(f"B{index}", matrix)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """<h, e B>, whose gradient in h is e B. Its value has no meaning of its own."""
        matrix: Tensor = self.get_buffer(f"B{index}")  # [D, H]
        delivered = self.signal_scale * (signal.to(matrix.dtype) @ matrix)  # [B, H]
        return (h.flatten(1) * delivered).sum()
