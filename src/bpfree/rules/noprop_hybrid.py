"""NoProp with blocks that predict the noise, a public variation of NoProp-DT with a combined loss.

After Li, Teh, Pascanu 2025, https://arxiv.org/abs/2503.24322. The losses are combined as in
https://github.com/vpuhoff/noprop-dt-mnist-pytorch, which reports 99.40 % on MNIST: its best epoch by the test split.

    z_{t-1} = sqrt(abar_{t-1}) u_y + sqrt(1 - abar_{t-1}) eps
    u^_t = (z_{t-1} - sqrt(1 - abar_{t-1}) eps^_t(z_{t-1}, x)) / sqrt(abar_{t-1})
    block t minimises  2 mse(eps^_t, eps) + 1 mse(u^_t, u_y),  and the last block adds  CE(readout(u^_T), y)

Inference starts from z_0 ~ N(0, I), or from 0, and takes the steps of Eq. 3, the reverse step of DDPM. The classifier
reads u^_T.

Where we differ from that code: the embeddings learn; there, all losses take them detached. Block t sees noise level
t-1, as in inference; there, a block learns at one level and infers at the next one. The CE reaches the last block too;
there, it reaches the classifier alone, by the block that sees most noise. Inference is deterministic by default.

abar_0 cannot be 0, because u^ cannot be computed from noise alone. It is `schedule.abar_min` (1e-4 in that code), while
inference starts from noise alone. A smaller value makes this mismatch smaller, but an error in the predicted noise
larger in u^.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.diffusion.blocks import BlockRule, Order
from bpfree.diffusion.rule import Inference, State
from bpfree.diffusion.schedules import ScheduleSpec
from bpfree.errors import UserError, check_positive
from bpfree.spec import Spec
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.types import Batch, Task

LEARNED: Spec = {"name": "learned", "norm_clip": 50.0, "weight_decay": 1e-7}


class NoPropHybrid(BlockRule):
    """NoProp by noise prediction, on a net whose blocks predict an embedding (`net.head.predicts: embedding`).

    Args:
        noise_weight: weight of the loss of the predicted noise.
        embedding_weight: weight of the loss of the embedding that follows from the predicted noise.
        schedule: "cosine" or "linear". `abar_min` is abar_0, above 0; `abar_max` is abar_T.
        order: "all", "random" or "sequential", see NoPropDT.
        embedding: the embedding of labels, see NoPropDT.
        inference: "deterministic", or "stochastic" as in Eq. 3 with noise that is the same in each call.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY
    scores_by_readout: ClassVar[bool] = True
    predicts: Literal["scores", "embedding"] = "embedding"

    def __init__(
        self,
        *,
        noise_weight: float = 2.0,
        embedding_weight: float = 1.0,
        schedule: ScheduleSpec | Spec = ScheduleSpec("cosine", 0.2, 0.999),
        order: Order = "all",
        embedding: Spec = LEARNED,
        inference: Inference = "deterministic",
    ) -> None:
        schedule = ScheduleSpec.of(schedule, "schedule")
        super().__init__(schedule=schedule, order=order, embedding=embedding, decode="readout", inference=inference)
        check_positive("noise_weight", noise_weight)
        check_positive("embedding_weight", embedding_weight)
        if schedule.abar_min == 0:
            raise UserError(
                "schedule.abar_min: found 0, allowed: above 0, because no embedding can be computed from noise alone"
            )
        self.noise_weight = noise_weight
        self.embedding_weight = embedding_weight

    def block_losses(self, turns: range, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """Return 2 mse(eps^, eps) + mse(u^, u), [K]; the last block's also + CE(readout(u^), y). See `BlockRule`."""
        return torch.stack([self._loss(t, out[k], z[k], eps[k], task, batch) for k, t in enumerate(turns)])

    def _loss(self, t: int, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        estimate = self.estimate(t, out, z)
        loss = self.noise_weight * F.mse_loss(out.to(eps.dtype), eps)
        loss = loss + self.embedding_weight * F.mse_loss(estimate, self.embedding(batch))
        return loss + task.loss(self.read(estimate), batch) if t == self.levels.steps else loss

    def estimate(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """Return u^ [B, E], which follows from z and the predicted noise `out`; see `BlockRule`."""
        abar = self.levels.shares[t - 1]
        estimate: Tensor = (z - (1 - abar) ** 0.5 * out.to(z.dtype)) / abar**0.5
        return estimate

    def _block_scores(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        return self.read(self.estimate(t, out, z))

    def conclude(self, walk: Iterator[State]) -> Tensor:
        """Return the scores [B, D] that the classifier reads from u^_T.

        Args:
            walk: the states of inference, see `walk`.
        """
        *_, last = walk
        assert last.scores is not None
        return last.scores
