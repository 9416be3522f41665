"""NoProp with blocks that predict the noise, a public variation of NoProp-DT with a combined loss.

After Li, Teh, Pascanu 2025, https://arxiv.org/abs/2503.24322; combined as in public code (99.40 % on MNIST).

    z_{t-1} = sqrt(abar_{t-1}) u_y + sqrt(1 - abar_{t-1}) eps
    u^_t = (z_{t-1} - sqrt(1 - abar_{t-1}) eps^_t(z_{t-1}, x)) / sqrt(abar_{t-1})
    block t minimises  2 mse(eps^_t, eps) + 1 mse(u^_t, u_y),  the last one also CE(readout(u^_T), y)

Inference goes from z_0 ~ N(0, I), or 0, by Eq. 3, which is DDPM's reverse step, and the classifier reads u^_T.

Where we differ from public code: the embeddings really learn, and block t sees noise level t-1, as in inference.
abar_0 cannot be 0, since no u^ can be told from noise alone. It is `abar_min` instead, while inference starts from
noise alone: the smaller it is, the smaller this mismatch, and the more an error in the noise counts in u^.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from bpfree.diffusion.blocks import BlockRule, DiscreteSchedule, Order
from bpfree.diffusion.rule import Inference, State
from bpfree.errors import UserError, check_positive
from bpfree.spec import Spec
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.types import Batch, Task

LEARNED: Spec = {"name": "learned", "norm_clip": 50.0, "weight_decay": 1e-7}


class NoPropHybrid(BlockRule):
    """NoProp by noise prediction, on a net whose blocks predict an embedding (`net.predicts: embedding`).

    Args:
        noise_weight: of the loss of the predicted noise.
        embedding_weight: of the loss of the embedding that follows from it.
        schedule: "cosine" or "linear".
        abar_min: abar_0, above 0.
        abar_max: abar_T.
        order: "all", "random" or "sequential", see NoPropDT.
        embedding: of labels, as of NoPropDT.
        inference: "deterministic", or "stochastic" as in Eq. 3, keyed so that it repeats.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY
    predicts: Literal["scores", "embedding"] = "embedding"

    def __init__(
        self,
        *,
        noise_weight: float = 2.0,
        embedding_weight: float = 1.0,
        schedule: DiscreteSchedule = "cosine",
        abar_min: float = 0.2,
        abar_max: float = 0.999,
        order: Order = "all",
        embedding: Spec = LEARNED,
        inference: Inference = "deterministic",
    ) -> None:
        super().__init__(
            schedule=schedule,
            abar_min=abar_min,
            abar_max=abar_max,
            order=order,
            embedding=embedding,
            decode="readout",
            inference=inference,
        )
        check_positive("noise_weight", noise_weight)
        check_positive("embedding_weight", embedding_weight)
        if abar_min == 0:
            raise UserError("abar_min: found 0, allowed: above 0, since no embedding can be told from noise alone")
        self.noise_weight = noise_weight
        self.embedding_weight = embedding_weight

    def block_loss(self, t: int, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """2 mse(eps^, eps) + mse(u^, u), and for the last block CE(readout(u^), y)."""
        estimate = self.estimate(t, out, z)
        loss = self.noise_weight * F.mse_loss(out.to(eps.dtype), eps)
        loss = loss + self.embedding_weight * F.mse_loss(estimate, self.embedding(batch))
        return loss + task.loss(self.read(estimate), batch) if t == self.levels.steps else loss

    def estimate(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """u^ of the predicted noise, [B, E]."""
        abar = float(self.levels.abar[t - 1])
        estimate: Tensor = (z - (1 - abar) ** 0.5 * out.to(z.dtype)) / abar**0.5
        return estimate

    def _block_scores(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        return self.read(self.estimate(t, out, z))

    def conclude(self, walk: Iterator[State]) -> Tensor:
        """Scores [B, D], read from u^_T."""
        *_, last = walk
        assert last.scores is not None
        return last.scores
