"""Direct feedback: a signal at the output goes to each hidden segment through a matrix of its own.

    the gradient in h_l is s B_l,    s [B, D] the error or the target,    B_l [D, H_l]

A subclass says what s is. `ErrorFeedback` takes the error, at the output of the net or at the input of its read-out.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError, check_choice
from bpfree.grad import first_trainable, product_type, wide
from bpfree.inputs import Inputs
from bpfree.local.autotaps import find_segments, taps_behind_dropout
from bpfree.local.channels_last import from_rows
from bpfree.local.cut import Taps
from bpfree.local.evenly import is_readout
from bpfree.local.feedback import ALIGNED, AlignedFeedback, check_feedback, mean_jacobians, random_like
from bpfree.local.fixed import FixedMatrices
from bpfree.local.readout import input_shape, readout_of
from bpfree.local.rule import LocalRule
from bpfree.local.segments import channel_axis, is_normalisation, owners
from bpfree.noise import Noise
from bpfree.rule import Locality
from bpfree.types import Batch, Task

Connection = Literal["dense", "channel"]
ErrorPlace = Literal["output", "features"]


class DirectFeedback(LocalRule):
    """The base class of rules that send a signal to each segment through its own matrix.

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
        width = self.signal_width(net, task, batch)
        like = first_trainable(net)
        for index, segment in enumerate(self.segments[:-1]):
            axis = channel_axis(net, segment) if self.connection == "channel" else 1
            self.axes.append(axis)
            columns = (1, *segment.shape)[axis] if self.connection == "channel" else segment.shape.numel()
            space = segment.shape.numel() // columns
            if aligned is None:
                drawn = random_like(self.feedback, like.new_empty(()).expand(width, columns)) / space**0.5
            else:
                drawn = aligned[index].movedim(axis, 1).reshape(width, columns, space).mean(2)
            self.keep_matrix(index, drawn)

    def signal_width(self, net: nn.Module, task: Task, batch: Batch) -> int:
        """Return D, the width of the signal; default: that of the net's output.

        Args:
            net: the net that was cut.
            task: gives the width of the output.
            batch: samples, for their shapes.
        """
        return task.dim

    def keep_matrix(self, index: int, matrix: Tensor) -> None:
        """Keep a new B_l, by default as a buffer.

        Args:
            index: number of the segment.
            matrix: [D, H_l] or [D, channels].
        """
        self.register_buffer(f"B{index}", matrix)

    def matrix(self, index: int) -> Tensor:
        """Return B_l as it is used now, [D, H_l] or [D, channels].

        Args:
            index: number of the segment.
        """
        return self.get_buffer(f"B{index}")

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
        matrix = self.matrix(index)  # [D, H], or [D, channels]
        taught = self.once(self._taught, signal)
        if self.connection == "dense":
            return from_rows(taught @ self._fixed.laid(f"B{index}", matrix, h), h).to(h.dtype)
        delivered = (taught @ self._fixed.laid(f"B{index}", matrix)).to(h.dtype)
        return delivered.view(*delivered.shape, *[1] * (h.dim() - 2)).movedim(1, self.axes[index]).expand_as(h)

    def _taught(self, signal: Tensor) -> Tensor:
        """Return what goes through all B_l, scaled, in the type that products multiply."""
        like = self.matrix(0)
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
        matrices = [self.matrix(index) for index in range(len(self.taps))]  # [D, H_l]
        paths = {}
        for index, segment in enumerate(self.segments[1:]):
            weights = {name: p.detach() for name in segment.parameters if (p := net.get_parameter(name)).dim() > 1}
            is_output = index + 1 == len(matrices)
            feedback = matrices[index] if is_output else matrices[index + 1].T @ matrices[index]
            if [weight.shape for weight in weights.values()] == [feedback.shape]:
                ((name, weight),) = weights.items()
                paths[name.rpartition(".")[0]] = (weight, feedback)
        return paths


class ErrorFeedback(DirectFeedback):
    """Direct feedback of the error, taken at the output of the net or before its read-out.

        e = dLoss/dout [B, D]                          error: output
        e = dLoss/d(input of the read-out) [B, d]      error: features

    With "features" the width of B_l does not grow with the number of outputs, such as a vocabulary. The read-out and
    the stage before it are the last segment, which learns from the true error. So a net of one stage learns by
    backprop. The signal then meets features that are divided by their root mean square, unless the tap is a
    normalisation: it cannot make them longer. Without this, the features of a Transformer that normalises before each
    branch grow without end, since nothing after them feels their length.

    Args:
        feedback: how B_l is drawn, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        error: where e is taken: "output", or "features", the input of the last linear layer.
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
        error: ErrorPlace = "output",
        signal_scale: float = 1.0,
        memory: Literal["fast", "flat"] = "fast",
        taps: Taps = None,
    ) -> None:
        super().__init__(feedback=feedback, connection=connection, signal_scale=signal_scale, taps=taps)
        check_choice("error", error, ("output", "features"))
        check_choice("memory", memory, ("fast", "flat"))
        if error == "features" and feedback == ALIGNED:
            raise UserError("feedback: found 'aligned' with error=features, allowed: a random one, as 'uniform'")
        self.error = error
        self.memory = memory
        self._readout: str | None = None
        self._normalised: list[int | None] = []  # the axis on which features of a segment are divided by their size

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make B_l for every hidden segment, and warn if there is none, so that the whole net learns by backprop."""
        super().bind(net, task, batch)
        self._normalised = [
            None if self.error == "output" or is_normalisation(net.get_submodule(tap)) else channel_axis(net, segment)
            for tap, segment in zip(self.taps, self.segments, strict=False)
        ]
        if not self.taps and self._asked_taps is None and self.error == "features":
            warnings.warn(
                f"{type(self).__name__}: the net has one stage before its read-out, so all of it learns from the true "
                "error, as by backprop. Use a deeper net, or error=output",
                stacklevel=2,
            )

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str] | None:
        """Return the usual taps, behind dropout, so that dropped units get no signal; see `LocalRule`.

        With `error: features` the read-out stays with the last stage.
        """
        taps = taps_behind_dropout(net, x)
        if self.error == "output":
            return taps
        segments = find_segments(net, x).segments if taps is None else owners(net, taps, x)
        names = [segment.name for segment in segments[:-1]]
        return names[:-1] if is_readout(net, segments[-1]) else names

    def signal_width(self, net: nn.Module, task: Task, batch: Batch) -> int:
        """Return D, or the number of features before the read-out."""
        if self.error == "output":
            self._readout = None
            return super().signal_width(net, task, batch)
        readout = readout_of(net, self.segments[-1], task.dim)
        self._readout = readout.name
        shape = input_shape(net, readout.layer, batch.first(2).x)
        return shape.numel() // (shape[0] if self.per_step else 1)

    def error_of(self, net: nn.Module) -> nn.Module | None:
        """Return the read-out with `error: features`, else None."""
        return None if self._readout is None else net.get_submodule(self._readout)

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return the error through B_l, and with `error: features` through a normalisation of h."""
        gradient, axis = super().local_gradient(index, h, signal), self._normalised[index]
        return gradient if axis is None else through_rms(gradient, h, axis)

    def teach(self, signal: Tensor) -> Tensor:
        """Return the error e itself."""
        return signal

    def locality(self) -> Locality:
        """Return that of direct feedback.

        The error of the features has gone through the read-out and its weight before it teaches other segments.
        """
        found = super().locality()
        return found._replace(through="net", transports="weights") if self.error == "features" else found


def through_rms(gradient: Tensor, h: Tensor, axis: int) -> Tensor:
    """Return the gradient in h for a gradient in h / sqrt(mean(h^2) + 1e-6). It does not change the length of h.

    Args:
        gradient: of the shape of h.
        h: features, detached.
        axis: the axis of the mean.
    """
    g, h = wide(gradient), wide(h)
    size = (h.square().mean(axis, keepdim=True) + 1e-6).sqrt()
    unit = h / size
    return ((g - unit * (g * unit).mean(axis, keepdim=True)) / size).to(gradient.dtype)
