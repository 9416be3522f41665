"""Rules with one block that is told the time, and an ordinary differential equation to be solved in inference."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor, nn

from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import DiffusionRule, Options, State, eps_like
from bpfree.diffusion.solvers import SOLVERS, Solver, solve
from bpfree.errors import check_choice, check_positive
from bpfree.grad import backward
from bpfree.inputs import Inputs, one_tensor
from bpfree.noise import Noise
from bpfree.types import Batch, Scalars, Task, classes_of


class TimeRule(DiffusionRule):
    """One block learns at random times; inference follows dz/dt from 0 to 1.

    Args:
        draws: times and noises for each sample of a batch; the trunk runs once for all of them.
        steps: of the solver.
        solver: a name in `bpfree.diffusion.SOLVERS`.
        options: see `DiffusionRule`.
    """

    timed = True
    first = "one_step"

    def __init__(self, *, draws: int, steps: int, solver: Solver, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_positive("draws", draws)
        check_positive("steps", steps)
        check_choice("solver", solver, SOLVERS)
        self.draws = draws
        self.steps = steps
        self.solver: Solver = solver

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """One pass of the trunk and one of the head on all draws.

        `accuracy` is that of a single step from noise, which holds nothing of the label.
        """
        self.refuse_unbound()
        blocks, scalars = self._blocks(net), Scalars()
        with noise.fold("block").global_rng(batch.device):
            learns = blocks.local
            features = self._learn_trunk(blocks, task, batch, scalars) if learns else blocks.trunks[0](batch.tensor)
            times = stratified(self.draws * len(batch.y), batch.tensor, noise.fold("times"))
            many = Batch(batch.x, batch.y.repeat(self.draws, *[1] * (batch.y.dim() - 1)))
            repeated = features.repeat(self.draws, 1)
            loss, shared = self.losses(blocks, task, many, repeated, times, noise)
        backward(loss + shared)
        if classes_of(task) is not None:
            with torch.no_grad():
                z = eps_like(features.new_zeros(len(features), self.embedding.dim), noise.fold("accuracy"))
                scores = self.scores_at(blocks, features.detach(), z, z.new_zeros(()))
            scalars["accuracy"] = (scores.argmax(1) == batch.y).float().mean()
        return scalars | {
            "loss/block1": loss.detach(),
            "loss/readout": shared.detach(),
            "loss": (loss + shared).detach(),
        }

    @abstractmethod
    def losses(
        self, blocks: DenoisingNet, task: Task, many: Batch, features: Tensor, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """The block's loss and that of what stands around it, each 0-d; y, features and times are of all draws."""

    @abstractmethod
    def field(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """dz/dt [B, E] at a time, 0-d."""

    @abstractmethod
    def scores_at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """What the block takes the samples for, [B, D], from z at a time, 0-d."""

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Scores [B, D] at the end of the path; the trunk runs once."""
        blocks = self._blocks(net)
        features = blocks.trunks[0](one_tensor(x))
        return self.read(self._path(blocks, features, self.inference == "stochastic")[-1])

    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """The solver's path from z_0 = 0 or, if stochastic, from noise."""
        blocks = self._blocks(net)
        features = blocks.trunks[0](one_tensor(x))
        path = self._path(blocks, features, stochastic)
        yield State(0.0, path[0], None)
        for step in range(self.steps):
            time = path.new_tensor(step / self.steps)
            yield State((step + 1) / self.steps, path[step + 1], self.scores_at(blocks, features, path[step], time))

    def _path(self, blocks: DenoisingNet, features: Tensor, stochastic: bool) -> Tensor:
        """The path of z, [steps + 1, B, E]."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        z = features.new_zeros(len(features), self.embedding.dim, dtype=dtype)
        z = eps_like(z, Noise().fold("walk", 0)) if stochastic else z
        return solve(lambda z, time: self.field(blocks, features, z, time), z, self.steps, self.solver)

    def _at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """What the head gives at times [B], or one for all."""
        return blocks.heads[0](features, z, time.expand(len(z)))  # type: ignore[no-any-return]


def stratified(n: int, like: Tensor, noise: Noise) -> Tensor:
    """N times, each uniform in [0, 1), that fill the interval evenly, in random order; of the type of `like`.

    Even filling takes most of the chance out of a mean over times (Kingma et al. 2021, App. I.1).
    """
    generator = noise.generator()
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    times = ((torch.arange(n, dtype=torch.float64) + offset) / n)[torch.randperm(n, generator=generator)]
    return times.to(device=like.device, dtype=like.dtype)
