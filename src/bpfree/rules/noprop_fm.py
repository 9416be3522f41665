"""NoProp by flow matching.

Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
https://arxiv.org/abs/2503.24322, Eq. 10 to 13

    z_t = t z_1 + (1 - t) z_0 + sigma eps,    z_0 ~ N(0, I),  z_1 = u_y,  t ~ U(0, 1)
    loss = E |v(z_t, x, t) - (z_1 - z_0)|^2,  and with learned embeddings + CE(p(y | z_t + (1 - t) v), y)
    dz/dt = v(z, x, t),    v = logits W_embed, without a softmax

p(y | z) is a linear layer and a softmax, which learn together with the embeddings. This cross-entropy, the paper's
anchor loss, keeps the embeddings apart. The predicted label is the one whose embedding is nearest to z_1. To rebuild
samples, z_1 is the image and v is the block's output.

Where we differ: the times of a batch fill [0, 1] evenly, while each is still uniform. With `draws` each image is used
at several times. By default inference starts from z_0 = 0 and takes 10 steps; the paper takes 1,000. The linear layer
of p does not start at random, but as the classifier by the nearest embedding. `decode: readout` is ours: a linear layer
predicts too, and it learns also if the embeddings are fixed.
"""

import torch
from torch import Tensor, nn

from bpfree.diffusion.embeddings import LabelEmbedding
from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import Decode, Inference, eps_like
from bpfree.diffusion.solvers import Solver
from bpfree.diffusion.times import TimeRule
from bpfree.errors import UserError
from bpfree.grad import first_trainable
from bpfree.noise import Noise
from bpfree.spec import Spec
from bpfree.types import Batch, Task


class NoPropFM(TimeRule):
    """NoProp by flow matching, on a net of one block that takes the time as an input.

    The net needs `net.blocks: 1` and `net.head.timed: true`.

    Args:
        sigma: standard deviation of the noise around the straight line from z_0 to z_1, 0 or more.
        draws: the number of times and noises for each sample of a batch; the trunk runs once for all of them.
        steps: the number of steps of the solver.
        solver: "euler", "heun", or one of torchdiffeq's.
        embedding: the embedding of labels: "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide
            as a sample; each class starts at one of its samples). "image" for samples to rebuild. Options, as in
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`: see `bpfree.diffusion.embeddings`.
        decode: how z_1 becomes class scores: by the "nearest" embedding, or by a linear "readout".
        inference: "deterministic" from z_0 = 0, or "stochastic" from noise that is the same in each call.
    """

    def __init__(
        self,
        *,
        sigma: float = 0.0,
        draws: int = 1,
        steps: int = 10,
        solver: Solver = "euler",
        embedding: Spec | None = None,
        decode: Decode = "nearest",
        inference: Inference = "deterministic",
    ) -> None:
        super().__init__(
            draws=draws,
            steps=steps,
            solver=solver,
            embedding=embedding,
            decode=decode,
            inference=inference,
        )
        if sigma < 0:
            raise UserError(f"sigma: found {sigma}, allowed: 0 or more")
        self.sigma = sigma
        self.anchor: nn.Linear | None = None

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the linear layer of p, if embeddings learn and no read-out has its place; see `DiffusionRule`."""
        self.anchor = None  # of an earlier net
        super().bind(net, task, batch)
        if self.embedding.learned and self.readout is None:
            self.anchor = nn.Linear(self.embedding.dim, task.dim).to(first_trainable(net))
            self.start_readout()

    @torch.no_grad()
    def start_readout(self) -> None:
        """Set the linear layer of p to the classifier by the nearest embedding; see `DiffusionRule`."""
        super().start_readout()
        if self.anchor is not None:
            assert isinstance(self.embedding, LabelEmbedding)
            weight = self.embedding.weight
            self.anchor.weight.copy_(weight)
            self.anchor.bias.copy_(-weight.square().sum(1) / 2)

    def losses(
        self, blocks: DenoisingNet, task: Task, many: Batch, features: Tensor, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return |v - (z_1 - z_0)|^2 and the cross-entropy of the point that v aims at, each 0-d; see `TimeRule`.

        The cross-entropy is 0 if neither the embedding nor a read-out learns from it.
        """
        end = self.embedding(many)
        start = eps_like(end, noise.fold("z"))
        t = times.unsqueeze(1)
        z = t * end + (1 - t) * start
        if self.sigma:
            z = z + self.sigma * eps_like(z, noise.fold("z", "sigma"))
        v = self.embedding.combined(self._at(blocks, features, z, times))
        loss = (v - (end - start)).square().sum(1).mean()
        classifier = self.anchor or self.readout
        if classifier is None:
            return loss, loss.new_zeros(())
        pointed = z + (1 - t) * v  # [B, E], where the path ends if v stays as it is
        if not self.embedding.learned:
            pointed = pointed.detach()  # the block learns from v alone
        return loss, task.loss(classifier(pointed), many)

    def field(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return dz/dt = v [B, E]."""
        return self.embedding.combined(self._at(blocks, features, z, time))

    def scores_at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return the scores [B, D] of the point that v aims at."""
        return self.read(z + (1 - time) * self.field(blocks, features, z, time))
