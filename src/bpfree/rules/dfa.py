"""Direct feedback: every hidden layer learns from one signal at the output, through a fixed matrix of its own.

DFA: Nokland 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks",
https://arxiv.org/abs/1609.01596
DRTP: Frenkel, Lefebvre, Bol 2021, "Learning without feedback: fixed random learning signals allow for feedforward
training of deep neural networks", https://arxiv.org/abs/1909.01311

    DFA      d_l = (e B_l) * f'(a_l),    e = dLoss/dlogits [B, C],    B_l [C, H_l] fixed and random
    DRTP     d_l = (-Y B_l) * f'(a_l),   Y one-hot [B, C]
    shallow  d_l = 0: the hidden layers stay as they were drawn, the control that every comparison needs

The signal enters at the tap, behind the activation and before any pooling; what lies within the segment (f', batch
norm) contributes its true local derivative. The output layer always learns from the true error. In a Sequential the
signal of DFA enters behind a dropout that follows the activation, as in the author's code,
https://github.com/anokland/dfa-torch: a dropped unit gets no signal. That of DRTP enters before the dropout, as in its
authors' code, https://github.com/ChFrenkel/DirectRandomTargetProjection.

On a feature map, `connection: dense` gives each value of the map a column of B_l [C, channels*space] of its own;
`connection: channel` has B_l [C, channels] and delivers the same signal to a channel everywhere, which is cheap on
large maps. It is divided by sqrt(space), so that a sample's signal is as long as by a dense matrix.

`feedback: aligned` takes B_l from the net as it is when the rule is bound: the mean over the first batch of the
derivative of the output in h_l. On a linear net that is B_L = W_out, B_{l-1} = B_l W_l, and the first step is
backprop's; then the weights move on and B_l stays.

Where we differ: signals are divided by the batch size, as e of the mean loss is by itself, so the size of a step does
not grow with the batch. The code of DRTP's authors does not divide them, for DFA neither; `signal_scale` multiplies
them. DFA's author injects the signal behind pooling and starts tanh nets with weights of 0; here it enters before
pooling, and the net keeps its weights. DRTP's authors use sigmoid outputs with binary cross-entropy; here the output
has the task's loss. They send Y B_l in place of -Y B_l. A random B_l is as likely as -B_l, so the rule is the same.

On sequences with a target at each step, a step counts as a sample: e_t reaches each layer's output at step t, through
one B_l for all steps. A recurrent layer then differentiates its own steps back through time, or not at all with
`net.detach=true`. DRTP is for classes alone: a one-hot target tells the sign of the error, a number does not.
"""

import warnings
from abc import abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError, check_choice
from bpfree.grad import first_trainable, product_type
from bpfree.inputs import Inputs
from bpfree.local.autotaps import taps_behind_dropout
from bpfree.local.channels_last import from_rows
from bpfree.local.cut import Taps
from bpfree.local.feedback import ALIGNED, AlignedFeedback, check_feedback, mean_jacobians, random_like
from bpfree.local.fixed import FixedMatrices
from bpfree.local.rule import LocalRule
from bpfree.local.segments import channel_axis
from bpfree.noise import Noise
from bpfree.rule import Locality
from bpfree.tasks.abilities import ANY_LABELS
from bpfree.types import Batch, Task

Connection = Literal["dense", "channel"]

UNBOUNDED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)


class DirectFeedback(LocalRule):
    """The base class of DFA and DRTP: a signal at the output goes to each layer through its own matrix.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        signal_scale: multiplies the hidden signal.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    def __init__(
        self,
        *,
        feedback: AlignedFeedback = "uniform",
        connection: Connection = "dense",
        signal_scale: float = 1.0,
        taps: Taps = None,
    ) -> None:
        super().__init__(taps=taps)
        check_feedback(feedback)
        check_choice("connection", connection, ("dense", "channel"))
        self.feedback = feedback
        self.connection = connection
        self.signal_scale = signal_scale
        self.axes: list[int] = []  # of the channels in each hidden segment's output
        self._fixed = FixedMatrices()

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make B_l [D, H_l] or [D, channels] for every hidden segment, as the buffer `B<l>`."""
        super().bind(net, task, batch)
        self._buffers.clear()  # of an earlier net
        self.axes = []
        if self.per_step and self.feedback == ALIGNED:
            raise UserError("feedback: found 'aligned' with a target at each step, allowed: a random one, as 'uniform'")
        aligned = mean_jacobians(net, self.taps, batch.x) if self.feedback == ALIGNED else None
        like = first_trainable(net)
        for index, segment in enumerate(self.segments[:-1]):
            axis = channel_axis(net, segment) if self.connection == "channel" else 1
            self.axes.append(axis)
            columns = (1, *segment.shape)[axis] if self.connection == "channel" else segment.shape.numel()
            space = segment.shape.numel() // columns
            if aligned is None:
                drawn = random_like(self.feedback, like.new_empty(()).expand(task.dim, columns)) / space**0.5
            else:
                drawn = aligned[index].movedim(axis, 1).reshape(task.dim, columns, space).mean(2)
            self.register_buffer(f"B{index}", drawn)

    @abstractmethod
    def teach(self, signal: Tensor) -> Tensor:
        """Return what goes through B_l.

        Args:
            signal: [B, D], the error or the target.

        Returns:
            [B, D].
        """

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the signal [B, D] through B_l, in the shape of h."""
        matrix = self.get_buffer(f"B{index}")  # [D, H], or [D, channels]
        taught = self.once(self._taught, signal)
        if self.connection == "dense":
            return from_rows(taught @ self._fixed.laid(f"B{index}", matrix, h), h).to(h.dtype)
        delivered = (taught @ self._fixed.laid(f"B{index}", matrix)).to(h.dtype)
        return delivered.view(*delivered.shape, *[1] * (h.dim() - 2)).movedim(1, self.axes[index]).expand_as(h)

    def _taught(self, signal: Tensor) -> Tensor:
        """Return what goes through all B_l, scaled, in the type that products multiply."""
        like = self.get_buffer("B0")
        taught = self.teach(signal).to(like.dtype)
        if self.signal_scale != 1:
            taught = self.signal_scale * taught
        return taught.to(product_type(like))

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return <h, signal B_l>, whose gradient in h is signal B_l. The value itself has no meaning."""
        return (h * self.local_gradient(index, h.detach(), signal)).sum()

    def locality(self) -> Locality:
        """Return that of a local rule; aligned B_l are computed from the weights at the moment of `bind`."""
        return super().locality()._replace(transports="initial" if self.feedback == ALIGNED else "none")

    def feedback_paths(self, net: nn.Module, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """Return W_l beside B_l^T B_{l-1}, and the output layer's weight beside B_L.

        Segments whose weights do not have this shape are left out: a convolution, or several layers.
        """
        matrices = list(self.buffers())  # [D, H_l]
        paths = {}
        for index, segment in enumerate(self.segments[1:]):
            weights = {name: p.detach() for name in segment.parameters if (p := net.get_parameter(name)).dim() > 1}
            is_output = index + 1 == len(matrices)
            feedback = matrices[index] if is_output else matrices[index + 1].T @ matrices[index]
            if [weight.shape for weight in weights.values()] == [feedback.shape]:
                ((name, weight),) = weights.items()
                paths[name.rpartition(".")[0]] = (weight, feedback)
        return paths


class DFA(DirectFeedback):
    """Direct feedback alignment: the output error goes to each hidden layer through its own matrix.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        signal_scale: multiplies the hidden signal.
        memory: "fast" keeps the activations of one forward pass; "flat" runs the net twice instead, in the memory of
            one segment, and comes to the same weights.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, with the
            dropout behind them, or the blocks of another net.
    """

    needs_error: ClassVar[bool] = True
    mesh_modes: ClassVar[tuple[str, ...]] = ("data",)  # all segments wait for the error of the output

    def __init__(
        self,
        *,
        feedback: AlignedFeedback = "uniform",
        connection: Connection = "dense",
        signal_scale: float = 1.0,
        memory: Literal["fast", "flat"] = "fast",
        taps: Taps = None,
    ) -> None:
        super().__init__(feedback=feedback, connection=connection, signal_scale=signal_scale, taps=taps)
        check_choice("memory", memory, ("fast", "flat"))
        self.memory = memory

    def default_taps(self, net: nn.Module, x: Inputs) -> list[str] | None:
        """Return the usual taps, behind dropout, so that dropped units get no signal; see `LocalRule`."""
        return taps_behind_dropout(net, x)

    def teach(self, signal: Tensor) -> Tensor:
        """Return the error e itself."""
        return signal


class DRTP(DirectFeedback):
    """Direct random target projection: the label takes the place of the error, so no layer waits for the output.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        signal_scale: multiplies the hidden signal.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = ANY_LABELS
    uses_loss: ClassVar[bool] = False  # hidden layers learn from the targets themselves

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Draw B_l, and warn if activations have no bound: the signal never fades, so they could grow without end."""
        super().bind(net, task, batch)
        unbounded = [tap for tap in self.taps if isinstance(net.get_submodule(tap), UNBOUNDED)]
        if unbounded:
            warnings.warn(
                f"drtp: the outputs of {', '.join(unbounded)} have no bound, and DRTP's signal never fades, so they "
                "may run away. Use net.activation=tanh, or a small optimizer.lr",
                stacklevel=2,
            )

    def teach(self, signal: Tensor) -> Tensor:
        """Return -Y, divided by the batch size as the error of a mean loss is."""
        return signal / -len(signal)


class Shallow(LocalRule):
    """The control: only the output segment learns, on random features."""

    mesh_modes: ClassVar[tuple[str, ...]] = ("data",)
    trains_every_parameter: ClassVar[bool] = False

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Return the parameters of the output segment alone."""
        return super().units(net)[-1:]

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return 0, detached from the segment, so that nothing moves."""
        return h.detach().new_zeros(())
