"""GrAPE: direct feedback alignment whose matrices learn to point where the Jacobian points.

Caillon, Fagnou, Delattre, Allauzen 2026, "Scaling Direct Feedback Learning with Jacobian Alignment Guarantees",
https://openreview.net/forum?id=kasbbmwk3s

    the gradient in h_l is e B_l                            as in dfa
    J'_l = (J_l p) p^T,   p ~ N(0, I),   E[J'_l] = J_l      J_l = d(output)/d(h_l) [D, H_l]
    B_l minimises 1 - cos(B_l, J'_l)                        every column of B_l^T has length 1

J_l p comes from one pass in forward mode, in which p is added to h_l as a direction: no way back, and nothing is kept.
Each sample (each step of a sequence) has a direction of its own, and J'_l is their mean. For sequences it is the mean
of the derivatives of the output of a step in the features of the same step.

B_l is a parameter of the rule, and the optimiser of the run moves it together with the segment. Its lengths are taken
out where it is used.

`backprop_every: T` makes each T-th step a step of backprop ("calibration"), which holds back a drift in deep nets.

Where we differ: the paper has a learning rate of its own for B_l, and counts epochs where `backprop_every` counts
steps. The full text and the code of the authors were not at hand. So the options of the paper's training could not be
checked, nor whether samples share a direction, nor which of the two sides of B_l has its lengths fixed.
"""

import math
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from bpfree.errors import UserError
from bpfree.grad import backward
from bpfree.inputs import forward
from bpfree.local.cut import Taps, cut
from bpfree.local.direct import Connection, ErrorFeedback, ErrorPlace
from bpfree.local.feedback import AlignedFeedback
from bpfree.local.forward_mode import dual_level, forward_derivatives
from bpfree.local.readout import Inlet
from bpfree.mesh import drawn_for_samples, share_of_batch
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import Locality
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task


class FeedbackMatrix(nn.Module):
    """The matrix B_l, which learns.

    Args:
        weight: [D, columns], its values at the start.
        space: the number of places that share a column; the matrix is divided by its square root.
    """

    def __init__(self, weight: Tensor, space: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.space = space

    def forward(self) -> Tensor:
        """Return the matrix with rows of length 1, over all places."""
        return F.normalize(self.weight, dim=1) / math.sqrt(self.space)


class GrAPE(ErrorFeedback):
    """Direct feedback through matrices that learn the direction of the Jacobian, by forward mode.

    Args:
        feedback: how B_l is drawn at the start, a name in `bpfree.local.feedback.FEEDBACKS`, or "aligned".
        connection: of B_l to a feature map [B, channels, ...] or tokens [B, T, channels], "dense" or by "channel".
        error: where e is taken: "output", or "features", the input of the last linear layer.
        together: true for directions in all segments in one pass; false for a pass for each segment, whose estimates
            vary less.
        backprop_every: the number of steps after which one step is of backprop; 0 for never.
        signal_scale: multiplies the hidden signal.
        memory: "fast" keeps the activations of one forward pass; "flat" runs the net twice instead, in the memory of
            one segment, and comes to the same weights.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, with the
            dropout behind them, or the blocks of another net.

    Raises:
        UserError: `backprop_every` is below 0.
    """

    mean_over_samples: ClassVar[bool] = False  # the cosine is one of the whole batch, and directions are drawn for it

    def __init__(
        self,
        *,
        feedback: AlignedFeedback = "lecun",
        connection: Connection = "dense",
        error: ErrorPlace = "output",
        together: bool = False,
        backprop_every: int = 0,
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
        if backprop_every < 0:
            raise UserError(f"backprop_every: found {backprop_every}, allowed: a number of steps, or 0 for never")
        self.together = together
        self.backprop_every = backprop_every
        self.matrices = nn.ModuleList()
        self._found: dict[int, Tensor] = {}  # estimates of this step

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make B_l [D, H_l] or [D, channels] for every hidden segment, as a parameter.

        Raises:
            UserError: the output of the net has another width than the task.
        """
        self.matrices = nn.ModuleList()
        super().bind(net, task, batch)
        shape = self.segments[-1].shape
        values = shape.numel() // (shape[0] if self.per_step else 1)
        if values != task.dim:
            raise UserError(f"net: found {values} outputs, allowed: {task.dim}, as many as the task has")

    def keep_matrix(self, index: int, matrix: Tensor) -> None:
        """Keep a new B_l as a parameter."""
        self.matrices.append(FeedbackMatrix(matrix, self.segments[index].shape.numel() // matrix.shape[1]))

    def matrix(self, index: int) -> Tensor:
        """Return B_l with rows of length 1."""
        with torch.no_grad():
            matrix: Tensor = self.matrices[index]()
        return matrix

    def head(self, index: int) -> nn.Module | None:
        """Return B_l, which is trained together with its segment."""
        return self.matrices[index] if index < len(self.matrices) else None

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Align the matrices by passes in forward mode, then run a step of direct feedback or of backprop."""
        self.refuse_unbound()
        # Before the segments learn: with `update: fused` they are moved on the way.
        self._found = {}
        for group in self._passes():
            self._found |= self.estimates(net, batch, noise, group)
        if self.backprop_every and (noise.step + 1) % self.backprop_every == 0:
            return self._backprop(net, task, batch, noise)
        return super().gradients(net, task, batch, noise)

    def learn_segment(self, index: int, h: Tensor, signal: Tensor) -> Scalars:
        """Add the gradients of B_l and of a hidden segment."""
        self._align(index)
        return super().learn_segment(index, h, signal)

    def _align(self, index: int) -> None:
        estimate = self._found.pop(index)
        backward(1 - F.cosine_similarity(self.matrices[index]().flatten(), estimate.flatten(), dim=0))

    def estimates(self, net: nn.Module, batch: Batch, noise: Noise, group: list[int]) -> dict[int, Tensor]:
        """Return the estimates J'_l of some segments from one pass, [D, H_l] or [D, channels], by their index.

        Args:
            net: the net, in training mode.
            batch: the samples.
            noise: the key of the step.
            group: the segments.
        """
        directions: dict[int, Tensor] = {}

        def add(index: int, h: Tensor) -> Tensor:
            if index not in group:
                return h
            key = noise.fold("direction", index)
            p = drawn_for_samples(lambda n: key.randn(n, *h.shape[1:], device=h.device, dtype=h.dtype), len(h))
            directions[index] = p
            # Added to the direction that comes from segments before, if there is one.
            return h + forward_ad.make_dual(torch.zeros_like(p), p)  # type: ignore[no-untyped-call, no-any-return]

        with (
            torch.no_grad(),
            dual_level(),
            unchanged_buffers(net),
            noise.global_rng(batch.device),
            cut(net, self.taps, add, attached=True),
            Inlet(self.error_of(net)) as inlet,
            forward_derivatives(),
            torch.autocast(batch.device.type, enabled=False),  # batch norm's tangent has another type under it
        ):
            out = forward(net, batch.x)
            end = out if inlet.h is None else inlet.h
            moved = forward_ad.unpack_dual(end).tangent  # type: ignore[no-untyped-call]
        moved = torch.zeros_like(end) if moved is None else moved
        return {index: self._products(index, p, moved.flatten(1)) for index, p in directions.items()}

    def _products(self, index: int, p: Tensor, moved: Tensor) -> Tensor:
        """The mean over samples of (J_l p) p^T, for J_l p [B, D]."""
        p, moved = self._by_step(p, moved)
        if self.connection == "channel":
            p = p.movedim(self.axes[index], 1)
            p = p.flatten(2).mean(2) if p.dim() > 2 else p
        like = self.matrices[index].get_parameter("weight")
        mean = moved.to(like.dtype).T @ p.flatten(1).to(like.dtype) / len(p)
        share = share_of_batch()
        return mean if share is None else share.mean(mean)

    def _passes(self) -> list[list[int]]:
        """The segments of each pass in forward mode."""
        hidden = list(range(len(self.taps)))
        return ([hidden] if hidden else []) if self.together else [[index] for index in hidden]

    def _backprop(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Run a step of backprop through the whole net."""
        with noise.global_rng(batch.device):
            out = forward(net, batch.x)
        loss = task.loss(out, batch)
        backward(loss)
        units = self.units(net)
        written = [[(p, p.grad) for p in unit] for unit in units]
        for p, _ in chain(*written):
            p.grad = None  # who uses up the gradients of a segment when it is done must not see those of others
        for index, gradients in enumerate(written):
            for p, gradient in gradients:
                p.grad = gradient
            if index < len(self.taps):
                self._align(index)
            self.finish_segment(index)
        return metrics_of(task, out.detach(), batch, loss.detach())

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return the passes of direct feedback and those in forward mode."""
        return super().forward_passes(net, task) + len(self._passes())

    def locality(self) -> Locality:
        """Return that of direct feedback; with `backprop_every` no more than backprop.

        Passes in forward mode do go through the whole net, but what they find teaches the matrices alone.
        """
        return Locality() if self.backprop_every else super().locality()
