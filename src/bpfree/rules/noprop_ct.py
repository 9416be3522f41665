"""NoProp, continuous time.

Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
https://arxiv.org/abs/2503.24322, Eq. 9 and Appendix B

    loss = CE(p_out(y|z_1), y) + KL(q(z_0|y) || N(0, I)) + eta/2 E_t[SNR'(t) |u^(z_t, x, t) - u_y|^2],   t ~ U(0, 1)
    z_t ~ N(sqrt(abar(t)) u_y, 1 - abar(t)),    abar = sigmoid(-gamma),    u^ = softmax(logits) W_embed
    dz/dt = 1/2 (-gamma'(t)) sqrt(abar(t)) (u^(z, x, t) - sqrt(abar(t)) z)                   probability-flow ODE

One block is told the time; gamma is learned with it. The field is the score's with u^ put in, and bounded: nothing is
divided by 1 - abar, so a few steps do.

Where we differ: the times of a batch fill [0, 1] evenly, each still uniform; with `draws` each image is seen at
several; inference starts from z_0 = 0 by default.
"""

from typing import ClassVar

from torch import Tensor, nn

from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import Decode, Inference, eps_like
from bpfree.diffusion.schedules import SCHEDULES, ScheduleName, kl
from bpfree.diffusion.solvers import Solver
from bpfree.diffusion.times import TimeRule
from bpfree.errors import check_choice, check_positive
from bpfree.grad import first_trainable
from bpfree.noise import Noise
from bpfree.spec import Spec
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.types import Batch, Task


class NoPropCT(TimeRule):
    """NoProp in continuous time, on a net of one block that is told the time (`net.blocks: 1`, `net.timed: true`).

    Args:
        eta: weight of the denoising term.
        schedule: "learned", "cosine" or "linear", see `bpfree.diffusion.schedules`.
        abar_min: abar at time 0, above 0; with a learned schedule at the start of training.
        abar_max: abar at time 1, likewise. SNR' is largest there, so the nearer to 1, the longer a net learns only to
            copy z; at 0.95 embeddings of length 1 are told apart almost surely.
        draws: times and noises for each sample of a batch; the trunk runs once for all of them.
        steps: of the solver.
        solver: "euler", "heun", or one of torchdiffeq's.
        embedding: of labels "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide as a sample,
            starting at one of each class). With options as
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`, see `bpfree.diffusion.embeddings`.
        decode: how z_1 becomes class scores: by a linear "readout", or by the "nearest" embedding.
        inference: "deterministic" from z_0 = 0, or "stochastic" from noise, keyed so that it repeats.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY

    def __init__(
        self,
        *,
        eta: float = 1.0,
        schedule: ScheduleName = "learned",
        abar_min: float = 1e-3,
        abar_max: float = 0.95,
        draws: int = 1,
        steps: int = 10,
        solver: Solver = "euler",
        embedding: Spec | None = None,
        decode: Decode = "readout",
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
        check_positive("eta", eta)
        check_positive("abar_min", abar_min)
        check_choice("schedule", schedule, SCHEDULES)
        self.eta = eta
        self._ends = abar_min, abar_max
        self._new_schedule = SCHEDULES[schedule]
        self.schedule = self._new_schedule(*self._ends)

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """See `DiffusionRule`; a learned schedule begins anew."""
        super().bind(net, task, batch)
        self.schedule = self._new_schedule(*self._ends).to(first_trainable(net))

    def losses(
        self, blocks: DenoisingNet, task: Task, many: Batch, features: Tensor, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """eta/2 SNR'(t) |u^ - u_y|^2, and CE + KL."""
        u = self.embedding(many)
        out = self._at(blocks, features, self._noised(u, times, noise.fold("z")), times)
        error = (self.embedding.expected(out) - u).square().sum(1)
        last = self._noised(u, times.new_ones(1), noise.fold("z", "last"))
        shared = task.loss(self.read(last), many) + kl(self.schedule.abar(times.new_zeros(())), u)
        return 0.5 * self.eta * (self.schedule.dsnr(times) * error).mean(), shared

    def _noised(self, u: Tensor, times: Tensor, noise: Noise) -> Tensor:
        """z_t ~ q(z_t|y), [B, E]."""
        abar = self.schedule.abar(times).unsqueeze(1)
        return abar.sqrt() * u + (1 - abar).sqrt() * eps_like(u, noise)

    def field(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """See the module."""
        estimate = self.embedding.expected(self._at(blocks, features, z, time))
        share = self.schedule.abar(time).sqrt()
        return -0.5 * self.schedule.dgamma(time) * share * (estimate - share * z)

    def scores_at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """The block's logits."""
        return self._at(blocks, features, z, time)
