"""Local errors through fixed random classifiers.

Mostafa, Ramesh, Cauwenberghs 2018, "Deep Supervised Learning Using Local Errors", https://arxiv.org/abs/1711.06756

    segment l minimises loss(h_l C_l, y),        C_l [H_l, D] fixed and random, loss that of the task

For classes that is the cross-entropy, with class weights and label smoothing if the task has them; for several labels
a sample the binary cross-entropy; to rebuild x, mse(g(h_l C_l), x); for numbers their error, at each step if the task
has a target there. If each pixel has a class, C_l is a 1x1 convolution and its scores are interpolated to the labels.

Nothing is learned but the segment itself: its features must become what a random classifier can read. The error goes
back through C_l^T, or through a random matrix of the same signs, so that not even the classifier is transported. The
paper is about one class a sample; the other tasks are ours.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import check_choice
from bpfree.grad import first_trainable
from bpfree.local.channels_last import rows
from bpfree.local.cut import Taps
from bpfree.local.feedback import FEEDBACKS, Feedback, random_like
from bpfree.local.fixed import FixedMatrices
from bpfree.local.heads.linear import head_shape, read_pixels
from bpfree.local.rule import LocalRule
from bpfree.types import Batch, Task


class Local(LocalRule):
    """The task's loss of each segment, through a fixed random classifier or decoder.

    Args:
        feedback: how C_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`.
        backward: "transpose" sends the error through C_l^T, "sign" through random magnitudes with the signs of C_l.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    has_heads: ClassVar[bool] = True  # C_l, fixed

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
        self._fixed = FixedMatrices()

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Draw C_l^T [D, H_l] as the buffer `C<l>`, and what carries the error back as `R<l>` if it is another."""
        super().bind(net, task, batch)
        self._buffers.clear()  # of an earlier net
        like = first_trainable(net)
        for index, segment in enumerate(self.segments[:-1]):
            shape = like.new_empty(()).expand(head_shape(segment, task.dim, self.pixels))
            forth = random_like(self.feedback, shape)
            self.register_buffer(f"C{index}", forth)
            if self.backward == "sign":
                self.register_buffer(f"R{index}", torch.copysign(random_like(self.feedback, shape), forth))

    def scores(self, index: int, h: Tensor) -> Tensor:
        """H C_l, [B, D], or [B, C, H, W] if each pixel has a class."""
        return self._read(f"C{index}", h)

    def _read(self, name: str, h: Tensor) -> Tensor:
        """Return what the matrix of a buffer reads from h."""
        matrix = self.get_buffer(name)
        if self.pixels is not None:
            return read_pixels(h, self._fixed.laid(name, matrix), self.pixels)
        return F.linear(rows(h), self._fixed.laid(name, matrix, h))

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """The task's loss of h C_l; signal [B, D] is the target."""
        scores = self.scores(index, h)
        if self.backward == "sign":  # the value of the one, the derivative of the other
            through = self._read(f"R{index}", h)
            scores = through + (scores - through).detach()
        return self.task_loss(scores, signal)
