"""Rules with one block that takes the time as an input; inference solves an ordinary differential equation."""

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
from bpfree.mesh import drawn_for_samples
from bpfree.noise import Noise, counts
from bpfree.rule import Locality
from bpfree.types import Batch, Scalars, Task, classes_of

_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


class TimeRule(DiffusionRule):
    """A rule whose single block learns at random times; inference follows dz/dt from time 0 to 1.

    Args:
        draws: the number of times and noises for each sample of a batch; the trunk runs once for all of them.
        steps: the number of steps of the solver.
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

    def locality(self) -> Locality:
        """Return that of backprop: the single block is the whole net. A net with `trunk: local` is more local."""
        return Locality()

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of one pass of the trunk and one pass of the head on all draws; return the losses.

        The scalar `accuracy` is the accuracy of a single step from pure noise, which does not depend on the label.
        """
        self.refuse_unbound()
        blocks, scalars = self._blocks(net), Scalars()
        with noise.fold("block").global_rng(batch.device):
            learns = blocks.local
            features = self._learn_trunk(blocks, task, batch, scalars) if learns else blocks.trunks[0](batch.tensor)
            times = drawn_for_samples(
                lambda n: stratified(n, batch.tensor, noise.fold("times")), self.draws * len(batch.y)
            )
            # Draw k of sample i is row k B + i in y, times and features alike.
            many = Batch(batch.x, batch.y.repeat(self.draws, *[1] * (batch.y.dim() - 1)))
            repeated = features.repeat(self.draws, 1)  # [draws B, H]
            loss, shared = self.losses(blocks, task, many, repeated, times, noise)
        # One pass for both: they may share the graph of the embeddings, which a first backward would free.
        backward(loss + shared)
        if classes_of(task) is not None:
            with torch.no_grad():
                # Pure noise: from z_t ~ q(z_t|y) the head could read the label instead of predicting it.
                z = eps_like(features.new_zeros(len(features), self.embedding.dim), noise.fold("accuracy"))
                scores = self.scores_at(blocks, features.detach(), z, z.new_zeros(()))
            scalars["accuracy"] = (scores.argmax(1) == batch.y).float().mean()
        return scalars | {
            "loss/block1": loss.detach(),
            "loss/readout": shared.detach(),
            "loss": (loss + shared).detach(),
        }

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return the number of draws, and one more for the accuracy that classes have."""
        return self.draws + (classes_of(task) is not None)

    @abstractmethod
    def losses(
        self, blocks: DenoisingNet, task: Task, many: Batch, features: Tensor, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return the block's loss and the loss of schedule, embedding and read-out, each 0-d.

        Args:
            blocks: the net.
            task: the task.
            many: the labels of all draws, N = draws B.
            features: [N, H].
            times: [N] in [0, 1).
            noise: the source of all random numbers.
        """

    @abstractmethod
    def field(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return dz/dt [B, E].

        Args:
            blocks: the net.
            features: [B, H].
            z: the points [B, E].
            time: one time for all points, 0-d.
        """

    @abstractmethod
    def scores_at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """Return the block's class scores [B, D] at the points z [B, E] and a time, 0-d; see `field`."""

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return the scores [B, D] at the end of the path; the trunk runs once.

        Args:
            net: the net.
            x: samples [B, ...].
        """
        blocks = self._blocks(net)
        features = blocks.trunks[0](one_tensor(x))
        return self.read(self._path(blocks, features, self.inference == "stochastic")[-1])

    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """Yield the states on the solver's path from z_0 = 0 or, if stochastic, from noise; see `DiffusionRule`."""
        blocks = self._blocks(net)
        features = blocks.trunks[0](one_tensor(x))
        path = self._path(blocks, features, stochastic)
        # torchdiffeq returns a whole path at once, so this walk is not lazy as that of `BlockRule` is.
        yield State(0.0, path[0], None)
        for step in range(self.steps):
            time = path.new_tensor(step / self.steps)
            yield State((step + 1) / self.steps, path[step + 1], self.scores_at(blocks, features, path[step], time))

    def _path(self, blocks: DenoisingNet, features: Tensor, stochastic: bool) -> Tensor:
        """The path of z, [steps + 1, B, E]."""
        # At least float32: in half precision many small steps would be lost in rounding.
        dtype = torch.promote_types(features.dtype, torch.float32)
        z = features.new_zeros(features.shape[0], self.embedding.dim, dtype=dtype)
        z = eps_like(z, Noise().fold("walk", 0)) if stochastic else z
        return solve(lambda z, time: self.field(blocks, features, z, time), z, self.steps, self.solver)

    def _at(self, blocks: DenoisingNet, features: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """The head's output for times [B], or for one time for all points."""
        return blocks.heads[0](features, z, time.expand(z.shape[0]))  # type: ignore[no-any-return]


def stratified(n: int, like: Tensor, noise: Noise) -> Tensor:
    """Draw n times that fill [0, 1) evenly, in random order; each one alone is uniform in [0, 1).

    The variance of a mean over such times is much smaller than over independent times.

    Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, Appendix I.1.

    Args:
        n: the number of times.
        like: a tensor whose type and device the times get.
        noise: the source of the random numbers.
    """
    # One time in each n-th of [0, 1), all with the same offset. Without the random order, the first draw of every
    # sample would always have the small times.
    if counts(like.device):
        row = torch.zeros(1, dtype=torch.int64, device=like.device)
        words = noise.rows("words", row, n + 1)[0]  # the offset, and numbers whose order is the random order
        dtype = torch.promote_types(like.dtype, torch.float32)
        offset = words[0].to(dtype) / 2**32
        times = (words[1:].argsort().to(dtype) + offset) / n
        return times.clamp_max(_BELOW_ONE).to(like.dtype)  # the sum may be rounded to n
    generator = noise.generator()
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    times = ((torch.arange(n, dtype=torch.float64) + offset) / n)[torch.randperm(n, generator=generator)]
    return times.to(like.dtype)
