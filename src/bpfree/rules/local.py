"""Local errors through fixed random classifiers.

Mostafa, Ramesh, Cauwenberghs 2018, "Deep Supervised Learning Using Local Errors", https://arxiv.org/abs/1711.06756

    segment l minimises CE(h_l C_l, y),          C_l [H_l, C] fixed and random
    to rebuild x:       mse(g(h_l F_l), x),      F_l [H_l, D] fixed and random, g by the range of the data
    of numbers:         the task's loss of h_l F_l, at each step if the task has a target there

Nothing is learned but the segment itself: its features must become what a random classifier can read. The error goes
back through C_l^T, or through a random matrix of the same signs, so that not even the classifier is transported. The
paper is about classes; numbers and sequences are ours.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.cut import Taps
from bpfree.errors import check_choice
from bpfree.feedback import FEEDBACKS, Feedback, random_like
from bpfree.grad import first_trainable
from bpfree.layout import project
from bpfree.rule import LocalRule
from bpfree.types import Batch, Task


class Local(LocalRule):
    """Local cross-entropy through a fixed random classifier; for other targets, the error of a fixed random decoder.

    Args:
        feedback: how C_l or F_l is drawn, a name in `bpfree.feedback.FEEDBACKS`.
        backward: "transpose" sends the error through C_l^T, "sign" through random magnitudes with the signs of C_l.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    def __init__(
        self,
        *,
        feedback: Feedback = "uniform",
        backward: Literal["transpose", "sign"] = "transpose",
        taps: Taps = None,
    ) -> None:
        super().__init__(taps=taps)
        check_choice("feedback", feedback, FEEDBACKS)
        check_choice("backward", backward, ("transpose", "sign"))
        self.feedback = feedback
        self.backward = backward
        self._task: Task | None = None  # whose targets are no classes

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Draw C_l^T [D, H_l] as the buffer `C<l>`, and what carries the error back as `R<l>` if it is another."""
        super().bind(net, task, batch)
        self._task = task if batch.y.is_floating_point() else None
        self._buffers.clear()  # of an earlier net
        like = first_trainable(net)
        for index, segment in enumerate(self.segments[:-1]):
            shape = like.new_empty(()).expand(task.dim, segment.shape.numel())
            forth = random_like(self.feedback, shape)
            self.register_buffer(f"C{index}", forth)
            if self.backward == "sign":
                self.register_buffer(f"R{index}", torch.copysign(random_like(self.feedback, shape), forth))

    def scores(self, index: int, h: Tensor) -> Tensor:
        """H C_l, [B, D]."""
        return project(h, self.get_buffer(f"C{index}"))

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """CE(h C_l, y), signal [B, D] one-hot; or the task's loss of h F_l, signal [B, D] what it should be."""
        scores = self.scores(index, h)
        if self.backward == "sign":  # the value of the one, the derivative of the other
            through = project(h, self.get_buffer(f"R{index}"))
            scores = through + (scores - through).detach()
        if self._task is not None:
            return self._task.loss(scores, Batch(h, signal))
        return F.cross_entropy(scores, signal.to(scores.dtype))
