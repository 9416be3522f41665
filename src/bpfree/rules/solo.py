"""SOLO: each segment of a Transformer predicts by a read-only copy of the net's own read-out.

SOLO 2026, https://arxiv.org/abs/2609.35440. The authors released no code.

    h_k = f_k(sg(h_{k-1}))                            sg stops the gradient at each boundary
    z_k = tau_k W~ phi_k(h_k) + b_k     for k < K     phi_k: H blocks of the trunk's kind, then a normalisation
    z_K = W norm(h_K)                                 W [D, H_K], the read-out of the net
    loss_k = task loss(z_k, y), all with weight 1;    W learns from loss_K alone;    W~ <- W every S steps

A private read-out for each segment learns other features than the net needs in the end. With a copy of W, every segment
learns features for the same read-out. phi_k, tau_k and b_k are needed in training alone.

The copy is made at the start of a step, so it is W as the steps before left it. It is a buffer: no loss moves it, no
weight decay shrinks it, and checkpoints hold it. All minibatches that are added up to one step use the same copy.

Where we differ: the paper trains decoders for language. Here any net whose last layer is an nn.Linear can be trained,
for any task but a class for each pixel; `bpfree.local.heads.trunks` says what phi_k is. If the features of a segment
have another width than W takes, phi_k ends by a linear layer in between. With `every`, which is our addition, each
segment learns in some of the steps only.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import weight_of
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.cut import Taps
from bpfree.local.heads.trunks import small_trunk
from bpfree.local.readout import readout_of
from bpfree.nets.blocks import small_init
from bpfree.noise import Noise
from bpfree.rule import Locality, Rule
from bpfree.types import ALL_TASKS, Batch, Scalars, Task

ReadoutName = Literal["shared", "private", "random"]


class Solo(AuxiliaryRule):
    """The task's loss of each segment, through a few blocks of its own and a copy of the net's read-out.

    Args:
        depth: H, the number of blocks in each phi_k; 0 for a normalisation alone.
        refresh: S, the number of steps from one copy of W to the next.
        every: each hidden segment learns in every n-th step, one segment after the other; 1 for all in each step. The
            last segment always learns.
        readout: what hidden segments are read by: "shared" is the copy of W; "private", a learned matrix of each; or
            "random", a fixed random one. The last two are the paper's ablation.
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage of a Sequential or block of another net is a segment.

    Attributes:
        copied: W~ or the random matrix, [D, H_K]; None for private read-outs and without hidden segments.

    Raises:
        UserError: a number is not allowed.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(task for task in ALL_TASKS if task != "segment")
    copied: Tensor | None

    def __init__(
        self,
        *,
        depth: int = 2,
        refresh: int = 1,
        every: int = 1,
        readout: ReadoutName = "shared",
        taps: Taps = None,
    ) -> None:
        super().__init__(taps=taps)
        if depth < 0:
            raise UserError(f"depth: found {depth}, allowed: 0 or more blocks in the head of each hidden segment")
        check_positive("refresh", refresh)
        check_positive("every", every)
        check_choice("readout", readout, ("shared", "private", "random"))
        self.depth, self.refresh, self.every, self.readout = depth, refresh, every, readout
        self._source = ""  # the name of W's layer
        self._noise = Noise()  # the key of the step that runs
        self.register_buffer("copied", None)

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make phi_k, tau_k and b_k of each hidden segment, and the first copy of W.

        Raises:
            UserError: the net has no nn.Linear with D outputs behind the last tap, or it cannot be cut.
        """
        self.register_buffer("copied", None)
        super().bind(net, task, batch)
        if self.taps and self.readout != "private":
            weight = self._weight(net)
            self.copied = weight.clone() if self.readout == "shared" else _drawn(weight)

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return phi_k, tau_k and b_k, and with `readout: private` a matrix."""
        self._source, layer = readout_of(net, self.segments[-1], task.dim)
        phi = small_trunk(net, self.segments[index], layer.in_features, self.depth, per_step=self.per_step)
        private = _drawn(self._weight(net)) if self.readout == "private" else None
        return SoloHead(phi, task.dim, private)

    def _weight(self, net: nn.Module) -> Tensor:
        return weight_of(net.get_submodule(self._source))

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Refresh the copy of W if it is time, and run one forward pass in which every segment learns."""
        self._begin_step(net, noise)
        return super().gradients(net, task, batch, noise)

    def gradients_end_to_end(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Refresh the copy of W if it is time; see `LocalRule.gradients_end_to_end`."""
        self._begin_step(net, noise)
        return super().gradients_end_to_end(net, task, batch, noise)

    @torch.no_grad()
    def _begin_step(self, net: nn.Module, noise: Noise) -> None:
        self.refuse_unbound()
        self._noise = noise
        copied = self.copied
        if copied is None or self.readout != "shared":
            return
        if self.lane is not None:
            if noise.step % self.refresh == 0:
                self.lane.share_last(copied.copy_(self._weight(net)) if self.lane.is_last else copied)
        elif self.refresh == 1:
            copied.copy_(self._weight(net))
        else:
            # The number of the step may be on a GPU, where nobody must ask for it.
            due = torch.as_tensor(noise.step_number() % self.refresh == 0, device=copied.device)
            copied.copy_(torch.where(due, self._weight(net), copied))

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if several processes cannot split the work in a way.

        In blocks mode the last process sends its read-out to the others every S steps. They wait for it, so S should be
        10 or more there.
        """
        Rule.refuse_mesh(self, mode, net)

    def learn_segment(self, index: int, h: Tensor, signal: Tensor) -> Scalars:
        """Add the gradients of a hidden segment and its head, if it is its turn; see `LocalRule.learn_segment`."""
        if self.every > 1 and (self._noise.step + index) % self.every:
            return {}
        return super().learn_segment(index, h, signal)

    def scores(self, index: int, h: Tensor) -> Tensor:
        """Return z_k, in the shape of the net's output."""
        scores: Tensor = self.heads[index](h, self.copied)
        return scores

    def locality(self) -> Locality:
        """Declare one segment at a time, and with the shared read-out that the weights of the last segment travel.

        No segment waits for the output of its own batch. But the copy is the result of earlier steps of the last
        segment, and a segment that waits for such a copy counts as one that waits.
        """
        local = super().locality()
        return local._replace(waits=True, transports="weights") if self.readout == "shared" else local


class SoloHead(nn.Module):
    """The head of a hidden segment: z = tau W phi(h) + b.

    Args:
        phi: features of the segment -> features that the read-out takes, [..., H_K].
        outputs: D.
        weight: the first value of a private W [D, H_K]; None for a W that is given in each call.
    """

    def __init__(self, phi: nn.Module, outputs: int, weight: Tensor | None) -> None:
        super().__init__()
        self.phi = phi
        self.tau = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight = None if weight is None else nn.Parameter(weight)

    def forward(self, h: Tensor, weight: Tensor | None) -> Tensor:
        """Return scores [..., D].

        Args:
            h: [B, ...], features of the segment.
            weight: W [D, H_K], which gets no gradient; None if the head has its own.
        """
        own = self.weight if weight is None else weight
        assert own is not None, "the rule gives the matrix, or the head has one"
        return F.linear(self.tau * self.phi(h), own, self.bias)


def _drawn(like: Tensor) -> Tensor:
    """A random read-out of the shape of W, drawn as Transformers draw theirs."""
    layer = nn.Linear(like.shape[1], like.shape[0], bias=False, device=like.device, dtype=like.dtype)
    small_init(layer, like.shape[1])
    return layer.weight.detach()
