"""NoProp in discrete time, and a variation of it.

Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
https://arxiv.org/abs/2503.24322

    loss = CE(p_out(y|z_T), y) + KL(q(z_0|y) || N(0, I)) + (T/2) eta E_t[(SNR_t - SNR_{t-1}) |u^_t(z_{t-1}, x) - u_y|^2]
           with z_t ~ q(z_t|y) = N(sqrt(abar_t) u_y, 1 - abar_t)                                        (Eq. 6, 8)
    z_t  = a_t u^_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps                                           (Eq. 3)

Each block learns to predict the label's embedding u_y from the image and a noisy copy of u_y. No block waits for
another one, neither forwards nor backwards. u^_t = softmax(block's logits) W_embed. The CE term trains only the
read-out and learned embeddings. To rebuild samples, u_y is the image and u^_t = g(block's output), without the CE and
KL terms.

Where we differ: with `order: all`, the default, every block learns from every batch, so the expectation over t is an
exact sum. Inference is deterministic by default (z_0 = 0, eps = 0), because the noise of Eq. 3 only costs accuracy. The
read-out starts as z W_embed^T and not at random. The paper's other read-out, by distances (Eq. 14 to 16), is not here.

`noprop_linear` is a variation: the noise falls evenly from 0.9 at the first block to 0.01 at the end, the denoising
losses have equal weights, and the read-out learns from the end of inference instead of from z_T ~ q. The idea is from
the first version of https://github.com/eoghanf/NoPropLLM (commit bf53f11). There, z is (1 - n) u_y + n eps with the
noise n, a loss is weighted by n, the last block sees n = 0.01, and inference is not that of Eq. 3.
"""

from collections import deque
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bpfree.diffusion.blocks import BlockRule, Order
from bpfree.diffusion.rule import Decode, Inference
from bpfree.diffusion.schedules import ScheduleSpec, kl
from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.spec import Spec
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.types import Batch, Task, classes_of


class NoPropDT(BlockRule):
    """NoProp in discrete time, on a net with denoising blocks (`bpfree.nets.Denoiser`).

    Args:
        eta: weight of the denoising term.
        schedule: how the share of the label rises from block to block: "cosine" or "linear", see
            `bpfree.diffusion.schedules`. `abar_min` is abar_0, the share of the label in what block 1 sees while it
            learns; 0 for none, as in inference. `abar_max` is abar_T, which sets the weight of the last block.
        weighting: the weights of the blocks' losses: "snr" as in Eq. 8, or "equal".
        order: which blocks learn from a batch. "all": every block. "random": one block, drawn anew for each batch,
            with T times its loss. "sequential": one block, also with T times its loss; block 1 takes the first T-th
            part of each epoch's batches, block 2 the next part, and so on. (In the paper's Algorithm 1 each block
            takes a whole pass.)
        embedding: the embedding of labels: "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide
            as a sample; each class starts at one of its samples). "image" for samples to rebuild. Options, as in
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`: see `bpfree.diffusion.embeddings`.
        decode: how z_T becomes class scores: by a linear "readout", or by the "nearest" embedding.
        readout_from: what the read-out learns from: "posterior", z_T drawn around the label's embedding, or "chain",
            z_T at the end of inference.
        inference: "deterministic", or "stochastic" as in Eq. 3 with noise that is the same in each call.
    """

    _weights: Tensor  # [T]

    def __init__(
        self,
        *,
        eta: float = 0.1,
        schedule: ScheduleSpec | Spec = ScheduleSpec("cosine", 0.0, 0.999),
        weighting: Literal["snr", "equal"] = "snr",
        order: Order = "all",
        embedding: Spec | None = None,
        decode: Decode = "readout",
        readout_from: Literal["posterior", "chain"] = "posterior",
        inference: Inference = "deterministic",
    ) -> None:
        super().__init__(
            schedule=schedule,
            order=order,
            embedding=embedding,
            decode=decode,
            inference=inference,
        )
        check_positive("eta", eta)
        check_choice("weighting", weighting, ("snr", "equal"))
        check_choice("readout_from", readout_from, ("posterior", "chain"))
        self.eta = eta
        self.weighting = weighting
        self.readout_from = readout_from

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return what the blocks take, and one more if the read-out learns from the end of inference."""
        reads_chain = self.readout_from == "chain" and classes_of(task) is not None
        return super().forward_passes(net, task) + reads_chain

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Bind as `BlockRule` does, and compute the weights of the T losses."""
        super().bind(net, task, batch)
        dsnr = self.levels.dsnr
        self._keep("_weights", 0.5 * self.eta * (dsnr if self.weighting == "snr" else torch.ones_like(dsnr)), net)

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if the read-out learns from all blocks, and these are to be in several processes."""
        super().refuse_mesh(mode, net)
        if mode == "blocks" and self.readout_from == "chain":
            raise UserError(
                "mesh: found 'blocks', but the read-out learns from the end of inference, which needs all blocks. Use "
                "rule.readout_from=posterior, or train.mesh=data"
            )

    def block_losses(self, turns: range, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """Return eta/2 (SNR_t - SNR_{t-1}) |u^_t - u_y|^2, [K], means over the batch; see `BlockRule`."""
        errors: Tensor = (self.embedding.expected(out) - self.embedding(batch)).square().sum(2).mean(1)  # [K]
        return self._weights[turns.start - 1 : turns.stop - 1] * errors

    def shared_loss(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Tensor:
        """Return CE(p_out(y|z_T), y) + KL(q(z_0|y) || N(0, I)), 0-d; 0 for samples to rebuild."""
        if classes_of(task) is None:
            return batch.tensor.new_zeros(())
        if self.readout_from == "chain":
            z = self._chain_end(net, batch.tensor, noise)
        else:
            z = self._noised(range(self.levels.steps, self.levels.steps + 1), batch, noise)[0][0]
        return task.loss(self.read(z), batch) + kl(self._abar[0], self.embedding(batch))

    @torch.no_grad()
    def _chain_end(self, net: nn.Module, x: Tensor, noise: Noise) -> Tensor:
        """z_T [B, E] at the end of inference with the present weights.

        Batch norm uses the batch as in training, because its running statistics lag behind the weights.
        """
        with unchanged_buffers(net), noise.fold("chain").global_rng(x.device):
            # Only the last state is kept, so that memory does not grow with the number of blocks.
            (last,) = deque(self.walk(net, x, stochastic=self.inference == "stochastic"), maxlen=1)
        return last.z


class NoPropLinear(NoPropDT):
    """NoProp-DT with noise that falls evenly from 0.9 to 0.01, a public variation.

    Args:
        order: see NoPropDT.
        embedding: see NoPropDT.
        inference: see NoPropDT.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY
    mesh_modes: ClassVar[tuple[str, ...]] = ("data",)  # the read-out learns from all blocks
    moved_options: ClassVar[Mapping[str, str]] = {}  # the schedule is fixed

    def __init__(
        self,
        *,
        order: Order = "all",
        embedding: Spec | None = None,
        inference: Inference = "deterministic",
    ) -> None:
        super().__init__(
            schedule=ScheduleSpec("linear", 0.1, 0.99),
            weighting="equal",
            order=order,
            embedding=embedding,
            readout_from="chain",
            inference=inference,
            eta=2.0,
        )
