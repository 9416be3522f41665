"""Direct feedback: every hidden layer learns from one signal at the output, through a fixed matrix of its own.

DFA: Nokland 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks",
https://arxiv.org/abs/1609.01596
DFA of Transformers: Launay, Poli, Boniface, Krzakala 2020, "Direct Feedback Alignment Scales to Modern Deep Learning
Tasks and Architectures", https://arxiv.org/abs/2006.12878
DRTP: Frenkel, Lefebvre, Bol 2021, "Learning without feedback: fixed random learning signals allow for feedforward
training of deep neural networks", https://arxiv.org/abs/1909.01311

    DFA      d_l = (e B_l) * f'(a_l),    e = dLoss/dlogits [B, C],    B_l [C, H_l] fixed and random
    DRTP     d_l = (-Y B_l) * f'(a_l),   Y one-hot [B, C]
    error: features    e = dLoss/d(input of the read-out) [B, d],    B_l [d, H_l]
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

In the code of Launay et al., https://github.com/lightonai/dfa-scales-to-modern-deep-learning, all blocks share one
matrix from U(-1, 1) / sqrt(d), and the last block learns by it, too. Here each segment has its own matrix, and with
`error: features` the last block learns from the true error. Their blocks end with a normalisation. Here e B_l is the
gradient in h_l / rms(h_l), unless the tap is a normalisation, so that blocks without one do not grow without end.
"""

import warnings
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError, check_choice
from bpfree.inputs import Inputs
from bpfree.local.autotaps import find_segments
from bpfree.local.cut import Taps
from bpfree.local.direct import Connection, DirectFeedback, ErrorFeedback, ErrorPlace
from bpfree.local.feedback import AlignedFeedback
from bpfree.local.rule import LocalRule
from bpfree.local.within import Within
from bpfree.tasks.abilities import ANY_LABELS
from bpfree.types import Batch, Task

UNBOUNDED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)


class DFA(ErrorFeedback):
    """Direct feedback alignment: the output error goes to each hidden layer through its own matrix.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        error: where e is taken: "output", or "features", the input of the last linear layer. With "features" B_l does
            not grow with a vocabulary, and the read-out and the block before it learn from the true error.
        places: "blocks" to cut behind each block only; "layers" to cut also within it, in a Transformer behind the
            attention and behind the first matrix of the feed-forward net.
        cut_embedding: true to cut behind the embedding, too. It then learns by a matrix of its own, and not through the
            first block.
        signal_scale: multiplies the hidden signal.
        memory: "fast" keeps the activations of one forward pass; "flat" runs the net twice instead, in the memory of
            one segment, and comes to the same weights.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, with the
            dropout behind them, or the blocks of another net.

    Raises:
        UserError: `places` or `cut_embedding` together with `taps`, which already say where the net is cut.
    """

    def __init__(
        self,
        *,
        feedback: AlignedFeedback = "uniform",
        connection: Connection = "dense",
        error: ErrorPlace = "output",
        places: Literal["blocks", "layers"] = "blocks",
        cut_embedding: bool = False,
        signal_scale: float = 1.0,
        memory: Literal["fast", "flat"] = "fast",
        taps: Taps = None,
    ) -> None:
        super().__init__(
            feedback=feedback,
            connection=connection,
            error=error,
            signal_scale=signal_scale,
            memory=memory,
            taps=taps,
        )
        check_choice("places", places, ("blocks", "layers"))
        if self._asked_taps is not None and (places == "layers" or cut_embedding):
            asked = "places: found 'layers'" if places == "layers" else "cut_embedding: found true"
            raise UserError(f"{asked} together with taps, allowed: one of the two. Leave out taps, or list all of them")
        self.places = places
        self.cut_embedding = cut_embedding

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str] | None:
        """Return the usual taps of `ErrorFeedback`, and those within blocks and behind the embedding if asked for."""
        taps = super().default_taps(net, x)
        if self.places == "blocks" and not self.cut_embedding:
            return taps
        found = Within(net, x, [s.name for s in find_segments(net, x).segments[:-1]] if taps is None else taps)
        if self.cut_embedding:
            found.add_embedding()
        if self.places == "layers":
            found.add_layers()
        return found.taps


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
