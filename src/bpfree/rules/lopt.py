"""LoPT: the task's loss reaches the last half of a trained net; the first half keeps what it knows.

Shi, Han, Wang, Wang, Yang, Su 2026, "Rethinking Local Learning: A Cheaper and Faster Recipe for LLM Post-Training",
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
decoders for language. Here any net can be trained: without an embedding h_0 is x itself, and a feature map is read
pixel by pixel, with its input averaged to the same size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_positive
from bpfree.grad import runs_again
from bpfree.inputs import Inputs, forward, main_input
from bpfree.local.cut import Taps
from bpfree.local.evenly import evenly, whole_stages
from bpfree.local.headed import HeadedRule
from bpfree.local.segments import joins_next_stage, rehearsal
from bpfree.nets.unchanged import same_modes
from bpfree.noise import Noise
from bpfree.types import Batch, Scalars, Task

_GAIN = 0.1  # of the first weights of D
_BOTTLENECK = 4  # features of D's input for each in its middle
_PROBES = 4  # samples by which the drift is measured


class LoPT(HeadedRule):
    """Reconstruction of its input for each hidden segment, and the task's loss for the last one.

    Args:
        weight: lambda, the factor of the reconstruction losses.
        hidden_lr: the highest learning rate of hidden segments and their D_k, `lr_k1` of the authors; None for that of
            the optimiser. The smaller it is, the less the features move.
        drift: the number of steps from one measurement of the drift to the next; 0 for none. The scalar `drift/<tap>`
            is |h - h'| / |h'| for the features h of four samples now and h' before the first step.
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: one tap in the middle.

    Attributes:
        heads: D_k of each hidden segment.
        start: the samples and features of the drift; None if it is not measured.

    Raises:
        UserError: a number is not allowed.
    """

    keeps_steps: ClassVar[bool] = True
    sees_inputs: ClassVar[bool] = True

    def __init__(
        self, *, weight: float = 10.0, hidden_lr: float | None = None, drift: int = 0, taps: Taps = None
    ) -> None:
        super().__init__(taps=taps)
        check_positive("weight", weight)
        if hidden_lr is not None:
            check_positive("hidden_lr", hidden_lr)
        if drift < 0:
            raise UserError(f"drift: found {drift}, allowed: 0 for no measurement, or a number of steps")
        self.weight, self.hidden_lr, self.drift = weight, hidden_lr, drift
        self.start: Start | None = None
        self._entrance = ""  # the module whose output is h_0; "" if that is x
        self._entered: Tensor | None = None  # h_0 of the pass that runs

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str]:
        """Return the one tap in the middle; none for a net of one stage."""
        taps = whole_stages(net, x)
        return evenly(taps, min(1, len(taps)))

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make D_k of each hidden segment, and note the features from which the drift is measured.

        Raises:
            UserError: the net takes tokens and has no nn.Embedding, it cannot be cut, or the drift is to be measured of
                a net with several inputs.
        """
        self._entrance, self.start = _entrance(net), None
        super().bind(net, task, batch)
        if self.drift and self.taps:
            if not isinstance(batch.x, Tensor):
                raise UserError(f"drift: found {self.drift}, allowed: 0 for a net with several inputs")
            x = batch.x[:_PROBES].clone()
            self.start = Start(x, [h for _, h in self._pairs(net, x)])

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return D_k of a hidden segment; see `HeadedRule`."""
        before, h = self._pairs(net, batch.first(2).x)[index]
        if not before.is_floating_point():
            raise UserError(
                "net: found tokens as its input and no nn.Embedding that gives them features, allowed: a net with "
                "an nn.Embedding, since LoPT reconstructs its output. Use another rule, such as solo"
            )
        return Reconstruction(h.shape[1:], before.shape[1:])

    def optimizer_groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Return a group of the last segment and one of the others, which has `hidden_lr`; one group without it.

        Args:
            net: the net that the rule is bound to.
        """
        groups = super().optimizer_groups(net)
        if self.hidden_lr is None or not self.taps:
            return groups
        last = {id(p) for p in self.unit(net, len(self.segments) - 1)}
        parts = [[p for p in groups[0]["params"] if (id(p) in last) == chosen] for chosen in (True, False)]
        return [{"params": parts[0]}, {"params": parts[1], "lr": self.hidden_lr}]

    @contextmanager
    def cut_net(
        self, net: nn.Module, x: Inputs, visit: Callable[[int, Tensor], object], *, attached: bool = False
    ) -> Iterator[None]:
        """Cut the net, and keep the output of its embedding; see `LocalRule.cut_net`."""

        def keep(module: nn.Module, args: object, out: object) -> None:
            if isinstance(out, Tensor) and not runs_again():  # activation checkpointing repeats forward passes
                self._entered = out.detach()

        handle = net.get_submodule(self._entrance).register_forward_hook(keep) if self._entrance else None
        try:
            with super().cut_net(net, x, visit, attached=attached):
                yield
        finally:
            self._entered = None
            if handle is not None:
                handle.remove()

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return lambda / (K - 1) MSE(D_k(h_k), h_{k-1}), 0-d; the target is not read."""
        loss: Tensor = self.heads[index](h, self._before(index))
        return self.weight / len(self.taps) * loss

    def _before(self, index: int) -> Tensor:
        """h_{k-1} of the pass that runs."""
        first = self._entered if index == 0 else None
        return main_input(self.input_of(index)) if first is None else first

    def _pairs(self, net: nn.Module, x: Inputs) -> list[tuple[Tensor, Tensor]]:
        """h_{k-1} and h_k of each hidden segment, in evaluation mode, by a pass that leaves no trace."""
        found: list[tuple[Tensor, Tensor]] = []
        with rehearsal(net, x), torch.no_grad(), same_modes(net):
            net.eval()
            with self.cut_net(net, x, lambda index, h: found.append((self._before(index), h))):
                forward(net, x)
        return found

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Run one forward pass in which every segment learns, and measure the drift before it if it is time."""
        measured: Scalars = {}
        if self.start is not None and noise.step % self.drift == 0:
            moved = self.start.distances([h for _, h in self._pairs(net, self.start.samples)])
            measured = {f"drift/{tap}": value for tap, value in zip(self.taps, moved, strict=True)}
        return super().gradients(net, task, batch, noise) | measured

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if several processes cannot split the work in a way."""
        super().refuse_mesh(mode, net)
        if mode == "blocks" and self.drift:
            raise UserError(
                f"mesh: found 'blocks' with drift: {self.drift}, which needs the whole net in each process. Use drift: "
                "0, or train.mesh=data"
            )


class Reconstruction(nn.Module):
    """D: the mean squared error with which a small net predicts the input of a segment from its output.

    Tokens are read one by one. A feature map behind a feature map is read pixel by pixel, with its input averaged to
    the same size. Everything else is read as one vector.

    Args:
        shape: of h_k, for one sample.
        before: the shape of h_{k-1}, for one sample.
    """

    def __init__(self, shape: Sequence[int], before: Sequence[int]) -> None:
        super().__init__()
        tokens = len(shape) == 2 and len(before) == 2 and shape[0] == before[0]
        self.maps = len(shape) == 3 and len(before) == 3
        self.axis = 1 if self.maps else -1 if tokens else None  # of the features; None if all numbers are features
        place = 0 if self.maps else -1
        columns, rows = (torch.Size(s).numel() if self.axis is None else s[place] for s in (shape, before))
        inside = max(columns // _BOTTLENECK, 1)
        self.layers = nn.Sequential(
            nn.LayerNorm(columns), nn.Linear(columns, inside), nn.GELU(), nn.Linear(inside, rows)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain=_GAIN)
                nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, before: Tensor) -> Tensor:
        """Return the mean squared error, 0-d.

        Args:
            h: h_k, [B, ...].
            before: h_{k-1}, [B, ...], detached.
        """
        if self.maps:
            before = F.adaptive_avg_pool2d(before, (h.shape[2], h.shape[3]))
        h, before = (t.flatten(1) if self.axis is None else t.movedim(self.axis, -1) for t in (h, before))
        return F.mse_loss(self.layers(h), before)


class Start(nn.Module):
    """The features of a few samples before the first step.

    Args:
        samples: the samples, [B, ...].
        features: of each hidden segment, [B, ...].
    """

    samples: Tensor

    def __init__(self, samples: Tensor, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("samples", samples)
        for index, h in enumerate(features):
            self.register_buffer(f"features{index}", h)

    def distances(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return |h - h'| / |h'| for each hidden segment, 0-d.

        Args:
            features: h, [B, ...], of the same samples now.
        """
        before = [self.get_buffer(f"features{index}") for index in range(len(features))]
        return [(h - old).norm() / old.norm() for h, old in zip(features, before, strict=True)]


def _entrance(net: nn.Module) -> str:
    """The module whose output is h_0: that of bpfree's nets, else the first nn.Embedding; "" if there is none."""
    kinds = (joins_next_stage, lambda module: isinstance(module, nn.Embedding))
    names = (name for kind in kinds for name, module in net.named_modules() if kind(module))
    return next(names, "")
