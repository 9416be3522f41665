"""LoPT: the task's loss reaches the last half of a trained net; the first half keeps what it knows.

Shi et al. 2026, "Rethinking Local Learning: A Cheaper and Faster Recipe for LLM Post-Training",
https://arxiv.org/abs/2605.04913; code of the authors: https://github.com/HumyuShi/LoPT.

    h_k = f_k(sg(h_{k-1}))                                  h_0: the output of the embedding
    k < K:  lambda mean_k MSE(D_k(h_k), sg(h_{k-1}))        sg stops the gradient; the mean is over the K - 1 segments
    k = K:  task loss(net(x), y)

It is made for fine-tuning. The net comes trained, and has two segments, K = 2. Each D_k is LayerNorm, a linear layer to
a quarter of the features, GELU, and a linear layer to the features of h_{k-1}. Its weights start small, so D_k(h_k)
starts near 0. In training from scratch the first half would learn an autoencoder, and nothing about the task.

The target is the input of the segment in the same step, and not that of the trained net. So nothing in the loss holds
the features where they were, and if a segment hardly changes its input, D_k need only learn the identity. `drift` shows
how far the features move.

Where we differ: the authors clip the gradients of both halves by their common norm; here, as in every local rule, each
segment is clipped by its own norm, so that no segment waits for another. With an even number of blocks the segments are
theirs; with an odd one, theirs gives the block in the middle to the first half, and ours to the last. The authors have
decoders for language. Here any net can be trained: without an embedding h_0 is x itself, and a feature map is read pixel
by pixel, with its input averaged to the same size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_positive
from bpfree.inputs import Inputs, forward, main_input
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.cut import Taps, cut
from bpfree.local.evenly import evenly, whole_stages
from bpfree.local.layers import runs_again
from bpfree.local.segments import joins_next_stage, rehearsal
from bpfree.types import Batch, Task

_GAIN = 0.1  # of the first weights of D
_BOTTLENECK = 4  # features of D's input for each in its middle


class LoPT(AuxiliaryRule):
    """Reconstruction of its input for each hidden segment, and the task's loss for the last one.

    Args:
        weight: lambda, the factor of the reconstruction losses.
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: one tap in the middle.

    Raises:
        UserError: the weight is not above 0.
    """

    has_heads: ClassVar[bool] = False  # D does not read the task's answer
    sees_inputs: ClassVar[bool] = True

    def __init__(self, *, weight: float = 10.0, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_positive("weight", weight)
        self.weight = weight
        self._entrance = ""  # the module whose output is h_0; "" if that is x
        self._entered: Tensor | None = None  # h_0 of the pass that runs

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str]:
        """Return the one tap in the middle."""
        return evenly(whole_stages(net, x), 1)

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make D_k of each hidden segment.

        Raises:
            UserError: the net takes tokens and has no embedding, or it cannot be cut.
        """
        self._entrance = _entrance(net)
        self._inputs: list[torch.Size] = []
        super().bind(net, task, batch)

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return D_k for a hidden segment."""
        raise NotImplementedError
