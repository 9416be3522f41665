"""Direct feedback: every hidden layer learns from one signal at the output, through a fixed matrix of its own.

DFA: Nokland 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks",
https://arxiv.org/abs/1609.01596
DRTP: Frenkel, Lefebvre, Bol 2021, "Learning without feedback: fixed random learning signals allow for feedforward
training of deep neural networks", https://arxiv.org/abs/1909.01311

    DFA      d_l = (e B_l) * f'(a_l),    e = dLoss/dlogits [B, C],    B_l [C, H_l] fixed and random
    DRTP     d_l = (-Y B_l) * f'(a_l),   Y one-hot [B, C]
    shallow  d_l = 0: the hidden layers stay as they were drawn, the control that every comparison needs

The signal enters at the tap, behind the activation; what lies within the segment (f', batch norm) contributes its true
local derivative. The output layer always learns from the true error.

Where we differ: signals are divided by the batch size, as e of the mean loss is by itself, so the size of a step does
not grow with the batch as in public code; `signal_scale` multiplies them. DRTP's authors use sigmoid outputs with
binary cross-entropy; here the output has the task's loss.
"""

import warnings
from abc import abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.cut import Taps
from bpfree.errors import check_choice
from bpfree.feedback import FEEDBACKS, Feedback, random_like
from bpfree.rule import LocalRule, first_trainable
from bpfree.types import Batch, Task

UNBOUNDED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)


class DirectFeedback(LocalRule):
    """What DFA and DRTP share.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.feedback.FEEDBACKS`.
        signal_scale: multiplies the hidden signal.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential.
    """

    def __init__(self, *, feedback: Feedback = "uniform", signal_scale: float = 1.0, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_choice("feedback", feedback, FEEDBACKS)
        self.feedback = feedback
        self.signal_scale = signal_scale

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Draw B_l [D, H_l] for every hidden segment, as the buffer `B<l>`."""
        super().bind(net, task, batch)
        self._buffers.clear()  # of an earlier net
        like = first_trainable(net)
        for index, segment in enumerate(self.segments[:-1]):
            shape = like.new_empty(()).expand(task.dim, segment.shape.numel())
            self.register_buffer(f"B{index}", random_like(self.feedback, shape))

    @abstractmethod
    def teach(self, signal: Tensor) -> Tensor:
        """The signal [B, D] that goes through B_l."""

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """The signal through B_l, of the shape of h; signal [B, D]."""
        matrix: Tensor = self.get_buffer(f"B{index}")  # [D, H]
        taught = self.teach(signal).to(matrix.dtype)
        if self.signal_scale != 1:
            taught = self.signal_scale * taught
        return (taught @ matrix).view_as(h).to(h.dtype)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """<h, signal B_l>, whose gradient in h is signal B_l. Its value has no meaning of its own."""
        return (h * self.local_gradient(index, h.detach(), signal)).sum()


class DFA(DirectFeedback):
    """Direct feedback alignment.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.feedback.FEEDBACKS`.
        signal_scale: multiplies the hidden signal.
        memory: "fast" keeps the activations of one forward pass; "flat" runs the net twice instead, in the memory of
            one segment, and comes to the same weights.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential.
    """

    needs_error: ClassVar[bool] = True

    def __init__(
        self,
        *,
        feedback: Feedback = "uniform",
        signal_scale: float = 1.0,
        memory: Literal["fast", "flat"] = "fast",
        taps: Taps = None,
    ) -> None:
        super().__init__(feedback=feedback, signal_scale=signal_scale, taps=taps)
        check_choice("memory", memory, ("fast", "flat"))
        self.memory = memory

    def teach(self, signal: Tensor) -> Tensor:
        """The error e itself."""
        return signal


class DRTP(DirectFeedback):
    """Direct random target projection: the label takes the place of the error, so no layer waits for the output.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.feedback.FEEDBACKS`.
        signal_scale: multiplies the hidden signal.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential.
    """

    needs_labels: ClassVar[bool] = True

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """As for DFA; warns of activations without a bound, which grow for ever since the signal never ends."""
        super().bind(net, task, batch)
        unbounded = [tap for tap in self.taps if isinstance(net.get_submodule(tap), UNBOUNDED)]
        if unbounded:
            warnings.warn(
                f"drtp: the outputs of {', '.join(unbounded)} have no bound, and DRTP's signal never fades, so they "
                "may run away. Use net.activation=tanh, or a small optimizer.lr",
                stacklevel=2,
            )

    def teach(self, signal: Tensor) -> Tensor:
        """-Y, divided by the batch size."""
        return signal / -len(signal)


class Shallow(LocalRule):
    """The control: only the output segment learns, on random features."""

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """The output segment alone."""
        return super().units(net)[-1:]

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """0, detached from the segment, so nothing moves."""
        return h.detach().new_zeros(())
