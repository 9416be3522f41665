"""NoProp in continuous time.

Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
https://arxiv.org/abs/2503.24322, Eq. 9 and Appendix B

    loss = CE(p_out(y|z_1), y) + KL(q(z_0|y) || N(0, I)) + eta/2 E_t[SNR'(t) |u^(z_t, x, t) - u_y|^2],   t ~ U(0, 1)
    z_t ~ N(sqrt(abar(t)) u_y, 1 - abar(t)),    abar = sigmoid(-gamma),    u^ = softmax(logits) W_embed
    dz/dt = 1/2 (-gamma'(t)) sqrt(abar(t)) (u^(z, x, t) - sqrt(abar(t)) z)                   probability-flow ODE

One block takes the time as an input, and gamma is learned with it. The field is the probability-flow field in which u^
replaces the unknown embedding. It is bounded, because nothing is divided by 1 - abar, so a few steps are enough.

Where we differ: the times of a batch fill [0, 1] evenly, while each is still uniform. With `draws` each image is used
at several times. Inference starts from z_0 = 0 by default.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import Decode, Inference, eps_like
from bpfree.diffusion.schedules import MOVED_TO_SCHEDULE, ScheduleSpec, kl
from bpfree.diffusion.solvers import Solver
from bpfree.diffusion.times import TimeRule
from bpfree.errors import check_positive
from bpfree.grad import first_trainable
from bpfree.noise import Noise
from bpfree.spec import Spec
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.types import Batch, Task


class NoPropCT(TimeRule):
    """NoProp in continuous time, on a net of one block that takes the time as an input.

    The net needs `net.blocks: 1` and `net.head.timed: true`.

    Args:
        eta: weight of the denoising term.
        schedule: "learned", "cosine" or "linear", see `bpfree.diffusion.schedules`. `abar_min` is abar at time 0,
            above 0, and `abar_max` abar at time 1; a learned schedule starts there. SNR' is largest at time 1, so the
            nearer `abar_max` is to 1, the longer a net learns only to copy z. At 0.95, embeddings of length 1 can
            almost surely be distinguished.
        draws: the number of times and noises for each sample of a batch; the trunk runs once for all of them.
        steps: the number of steps of the solver.
        solver: "euler", "heun", or one of torchdiffeq's.
        embedding: the embedding of labels: "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide
            as a sample; each class starts at one of its samples). Options, as in
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`: see `bpfree.diffusion.embeddings`.
        decode: how z_1 becomes class scores: by a linear "readout", or by the "nearest" embedding.
        inference: "deterministic" from z_0 = 0, or "stochastic" from noise that is the same in each call.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY
    moved_options: ClassVar[Mapping[str, str]] = MOVED_TO_SCHEDULE

    def __init__(
        self,
        *,
        eta: float = 1.0,
        schedule: ScheduleSpec | Spec = ScheduleSpec("learned", 1e-3, 0.95),
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
        self._schedule_spec = ScheduleSpec.of(schedule, "schedule")
        check_positive("schedule.abar_min", self._schedule_spec.abar_min)  # at 0 gamma would be infinite
        self.eta = eta
        self.schedule = self._schedule_spec.build()

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Bind as `DiffusionRule` does; a learned schedule starts again."""
        super().bind(net, task, batch)
        self.schedule = self._schedule_spec.build().to(first_trainable(net))

    def losses(
        self, blocks: DenoisingNet, task: Task, many: Batch, features: Tensor, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return eta/2 SNR'(t) |u^ - u_y|^2 and CE + KL, each 0-d; see `TimeRule`."""
        u = self.embedding(many)
        out = self._at(blocks, features, self._noised(u, times, noise.fold("z")), times)
        error = (self.embedding.expected(out) - u).square().sum(1)
        last = self._noised(u, times.new_ones(1), noise.fold("z", "last"))
        shared = task.loss(self.read(last), many) + kl(self.schedule.abar(times.new_zeros(())), u)
        return 0.5 * self.eta * (self.schedule.dsnr(times) * error).mean(), shared

    def _noised(self, u: Tensor, times: Tensor, noise: Noise) -> Tensor:
        """A sample z_t ~ q(z_t|y), [B, E]."""
        abar = self.schedule.abar(times).unsqueeze(1)
        return abar.sqrt() * u + (1 - abar).sqrt() * eps_like(u, noise)

    def field(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return dz/dt [B, E], the probability-flow field at the top of this file."""
        estimate = self.embedding.expected(self._at(blocks, features, z, time))
        share = self.schedule.abar(time).sqrt()
        return -0.5 * self.schedule.dgamma(time) * share * (estimate - share * z)

    def scores_at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return the block's logits [B, D] as its class scores."""
        return self._at(blocks, features, z, time)
