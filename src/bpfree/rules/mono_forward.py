"""Mono-Forward.

Gong, Li, Abdulla 2025, "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural Network Training Harnessing
Local Errors", https://arxiv.org/abs/2501.09238

    G_l = h_l M_l^T  [B, C],    segment l and M_l minimise CE(G_l, y)

Every layer has a projection M_l of its own, without bias, and learns to tell the classes apart by it; nothing passes
from layer to layer but the activations.

Where we differ: the paper's net ends at its last hidden layer and is read by M_L ("ff" prediction) or by the sum of
all G_l. Here the net keeps the output layer it came with, which learns from the features below it, detached; so
`net(x)` alone is the trained classifier. `read: last` and `read: sum` give the paper's two. For targets that are no
classes, which the paper has not, the task's loss of G_l takes the place of the cross-entropy.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.cut import Taps, cut
from bpfree.errors import UserError, check_choice
from bpfree.grad import first_trainable
from bpfree.inputs import Inputs, forward
from bpfree.layout import project
from bpfree.rule import LocalRule
from bpfree.types import Batch, Task


class MonoForward(LocalRule):
    """Local cross-entropy through a learned projection per segment; for other targets than classes, the task's loss.

    Args:
        read: where a prediction is read: "net" (its output), "last" (G of the last hidden segment) or "sum" (of all
            G and the output).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    def __init__(self, *, read: Literal["net", "last", "sum"] = "net", taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_choice("read", read, ("net", "last", "sum"))
        self.read = read
        self.heads = nn.ModuleList()
        self._task: Task | None = None  # whose targets are no classes

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make M_l [C, H_l] for every hidden segment.

        Raises:
            UserError: `read: last` on a net without a hidden segment; scores to be read of what has no classes.
        """
        super().bind(net, task, batch)
        self._task = task if batch.y.is_floating_point() else None
        if self._task is not None and self.read != "net":
            raise UserError(f"read: found '{self.read}' for targets that are no classes, allowed: net")
        like = first_trainable(net)
        hidden = self.segments[:-1]
        if self.read == "last" and not hidden:
            raise UserError("read: found 'last', but the net has no hidden segment. Use read: net")
        heads = (nn.Linear(segment.shape.numel(), task.dim, bias=False) for segment in hidden)
        self.heads = nn.ModuleList(heads).to(device=like.device, dtype=like.dtype)

    def head(self, index: int) -> nn.Module | None:
        """M_l, trained together with its segment."""
        return self.heads[index] if index < len(self.heads) else None

    def goodness(self, index: int, h: Tensor) -> Tensor:
        """G_l = h M_l^T, [B, C]."""
        return project(h, self.heads[index].get_parameter("weight"))

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """G_l."""
        return self.goodness(index, h)

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """CE(G_l, y), or the task's loss of G_l."""
        goodness = self.goodness(index, h)
        if self._task is not None:
            return self._task.loss(goodness, Batch(h, signal))
        return F.cross_entropy(goodness, signal.to(goodness.dtype))

    @property
    def reads_output(self) -> bool:
        """Only with `read: net`."""
        return self.read == "net"

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Scores [B, C]; see `read`."""
        if self.read == "net":
            return super().predict(net, x)
        scores: list[Tensor] = []
        with cut(net, self.taps, lambda index, h: scores.append(self.goodness(index, h))):
            out = forward(net, x)
        return scores[-1] if self.read == "last" else torch.stack([*scores, out]).sum(0)
