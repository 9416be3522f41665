"""NoProp, discrete time.

Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
https://arxiv.org/abs/2503.24322

    loss = CE(p_out(y|z_T), y) + KL(q(z_0|y) || N(0, I)) + (T/2) eta E_t[(SNR_t - SNR_{t-1}) |u^_t(z_{t-1}, x) - u_y|^2]
           with z_t ~ q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t)                                        (Eq. 6, 8)
    z_t  = a_t u^_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps                                           (Eq. 3)

Each block learns by itself to tell the label's embedding u_y from the image and a noisy copy of u_y; no block waits
for another, forwards or backwards. u^_t = softmax(block's logits) W_embed. Only the read-out learns from the CE term.

Where we differ: the expectation over t is summed exactly, every block learning from every batch; inference is
deterministic by default (z_0 = 0, eps = 0), since Eq. 3's noise only costs accuracy; the read-out starts as the
nearest-embedding classifier z W_embed^T instead of at random. Embeddings are one-hot.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bpfree.diffusion import CosineSchedule, DenoisingNet, OneHotEmbedding
from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import backward, first_trainable, trainable
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task


class NoPropDT(Rule):
    """NoProp in discrete time, on a net with denoising blocks (`bpfree.nets.Denoiser`).

    Args:
        eta: weight of the denoising term.
        abar_max: abar_T is clipped to it, in (0, 1); it sets the weight of the last block.
        inference: "deterministic", or "stochastic" as in Eq. 3, keyed so that it repeats.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        eta: float = 0.1,
        abar_max: float = 0.999,
        inference: Literal["deterministic", "stochastic"] = "deterministic",
    ) -> None:
        super().__init__()
        check_positive("eta", eta)
        check_choice("inference", inference, ("deterministic", "stochastic"))
        self.eta = eta
        self.abar_max = abar_max
        self.inference = inference

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the schedule for the net's T blocks, the embedding [C, E] and the read-out.

        Raises:
            UserError: the net has no denoising blocks, or ones of another width.
        """
        super().bind(net, task, batch)
        blocks = self._blocks(net)
        like = first_trainable(net)
        self.schedule = CosineSchedule(len(blocks.heads), self.abar_max)
        self.embedding = OneHotEmbedding(task.dim).to(like)
        if blocks.embedding_dim != self.embedding.dim:
            raise UserError(
                f"net: its blocks read embeddings of width {blocks.embedding_dim}, but one-hot labels have "
                f"{self.embedding.dim}. Use net.embedding_dim={self.embedding.dim}"
            )
        self.readout = nn.Linear(self.embedding.dim, task.dim).to(like)
        with torch.no_grad():
            self.readout.weight.copy_(self.embedding.weight)
            self.readout.bias.zero_()

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Each block in turn: forward, loss, gradients, and its activations are freed.

        `accuracy` is that of block 1 alone, which sees pure noise; later blocks see the label in their z.
        """
        blocks = self._blocks(net)
        if not hasattr(self, "readout"):
            raise UserError("NoPropDT: not bound to a net. Call rule.bind(net, task, batch) first")
        u = self.embedding(batch.y)  # [B, E]
        kl = self.schedule.kl(u)
        scalars: Scalars = {}
        total = kl.detach()
        features = batch.x
        for t, head in enumerate(blocks.heads, start=1):
            with noise.fold("block", t).global_rng(u.device):
                features = blocks.trunks[t - 1](batch.x) if t <= len(blocks.trunks) else features.detach()
                logits = head(features, self._posterior(t - 1, u, noise))
            weight = 0.5 * self.eta * float(self.schedule.dsnr[t])
            loss = weight * (self._estimate(logits) - u).square().sum(1).mean()
            backward(loss)
            scalars[f"loss/block{t}"] = loss.detach()
            total = total + loss.detach()
            if t == 1:
                scalars |= {"accuracy": (logits.detach().argmax(1) == batch.y).float().mean()}
        z = self._posterior(self.schedule.steps, u, noise)
        loss = task.loss(self.readout(z), batch)
        backward(loss)
        return scalars | {"loss/readout": loss.detach(), "loss": total + loss.detach()}

    def predict(self, net: nn.Module, x: Tensor) -> Tensor:
        """Class scores [B, C] after all T blocks, by Eq. 3; the convs of a shared trunk run once."""
        blocks = self._blocks(net)
        z = x.new_zeros(len(x), self.embedding.dim)
        if self.inference == "stochastic":
            z = self._eps(z, Noise().fold("predict", 0))
        features = x
        for t, head in enumerate(blocks.heads, start=1):
            features = blocks.trunks[t - 1](x) if t <= len(blocks.trunks) else features
            a, b, c = self.schedule.step(t)
            z = a * self._estimate(head(features, z)) + b * z
            if self.inference == "stochastic":
                z = z + c**0.5 * self._eps(z, Noise().fold("predict", t))
        return self.readout(z)  # type: ignore[no-any-return]

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """The blocks, each with its own trunk (the first with the shared one), and the read-out."""
        blocks = self._blocks(net)
        own = [trainable(*blocks.trunks[t : t + 1], head) for t, head in enumerate(blocks.heads)]
        return [*own, trainable(self.readout)]

    def _estimate(self, logits: Tensor) -> Tensor:
        """u^ = softmax(logits) W_embed, [B, E]."""
        return logits.softmax(1).to(self.embedding.weight.dtype) @ self.embedding.weight

    def _posterior(self, t: int, u: Tensor, noise: Noise) -> Tensor:
        """z_t ~ q(z_t|y), [B, E]."""
        return self.schedule.posterior(t, u, self._eps(u, noise.fold("z", t)))

    @staticmethod
    def _eps(like: Tensor, noise: Noise) -> Tensor:
        return noise.randn(*like.shape, device=like.device, dtype=like.dtype)

    @staticmethod
    def _blocks(net: nn.Module) -> DenoisingNet:
        if not isinstance(net, DenoisingNet):
            raise UserError(
                f"net: found {type(net).__name__}, but NoProp needs denoising blocks, that is `trunks`, `heads` and "
                "`embedding_dim` as in bpfree.nets.Denoiser. Use net.name=denoiser"
            )
        return net
