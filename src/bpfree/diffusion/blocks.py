"""Rules with a block for each of T steps: who learns when, and the way through all blocks."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import DiffusionRule, Options, State, eps_like
from bpfree.diffusion.schedules import SCHEDULES
from bpfree.errors import UserError, check_choice
from bpfree.grad import backward
from bpfree.noise import Noise
from bpfree.types import Batch, Epochs, Scalars, Task, classes_of

Order = Literal["all", "random", "sequential"]
DiscreteSchedule = Literal["cosine", "linear"]


class BlockRule(DiffusionRule):
    """T blocks that each learn by themselves: block t sees z_{t-1} ~ q(z_{t-1}|y), and inference goes through all.

    Args:
        schedule: "cosine" or "linear".
        abar_min: abar_0, the share of the label in what block 1 sees.
        abar_max: abar_T; it sets the weight of the last block.
        order: "all" blocks learn from every batch; "random": one of them, drawn anew for each batch, its loss times T;
            "sequential": likewise times T, block 1 from the first T-th part of each epoch's batches, block 2 from the
            next, and so on (the paper's Algorithm 1, which gives each block a whole pass).
        options: see `DiffusionRule`.
    """

    def __init__(
        self, *, schedule: DiscreteSchedule, abar_min: float, abar_max: float, order: Order, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        check_choice("schedule", schedule, ("cosine", "linear"))
        check_choice("order", order, ("all", "random", "sequential"))
        self.schedule = SCHEDULES[schedule](abar_min, abar_max)
        self.order = order
        self._round: int | None = None  # steps in which all blocks have their turn: an epoch, or more if it is short

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """See `DiffusionRule`; the levels are those of the net's T blocks."""
        super().bind(net, task, batch)
        self.levels = self.schedule.levels(len(self._blocks(net).heads))

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """See `DiffusionRule`; blocks in turn share the batches of an epoch.

        Raises:
            UserError: there are fewer steps than blocks.
        """
        if self.order == "sequential" and steps < self.levels.steps:
            raise UserError(
                f"epochs: found {steps // len(data)} of {len(data)} batches, allowed with order: sequential: at least "
                f"{self.levels.steps} batches in all, one for each block"
            )
        super().begin(data, steps=steps, resumed=resumed)
        self._round = max(len(data), self.levels.steps)

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Each block in turn: forward, loss, gradients, and its activations are freed.

        `accuracy` is that of block 1 alone, which sees least of the label; later blocks are told much of it by z.
        """
        self.refuse_unbound()
        blocks, scalars = self._blocks(net), Scalars()
        turns = self._turns(noise)
        factor = 1 if self.order == "all" else len(blocks.heads)  # Eq. 61: one block stands for the sum over T
        total = batch.tensor.new_zeros((), dtype=torch.float32)
        features: Tensor | None = None
        for t in turns:
            with noise.fold("block", t).global_rng(batch.device):
                features = self._features(blocks, t, task, batch, features, scalars)
                z, eps = self._noised(t - 1, batch, noise)
                out = blocks.heads[t - 1](features, z)
                loss = factor * self.block_loss(t, out, z, eps, task, batch)
            backward(loss)
            scalars[f"loss/block{t}"] = loss.detach() / factor
            total = total + loss.detach()
            if t == 1 and classes_of(task) is not None:
                right = self._block_scores(1, out.detach(), z).argmax(1) == batch.y
                scalars["accuracy"] = right.float().mean()
        shared = self.shared_loss(net, task, batch, noise)
        backward(shared)
        return scalars | {"loss/readout": shared.detach(), "loss": total + shared.detach()}

    @abstractmethod
    def block_loss(self, t: int, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """What block t minimises, 0-d, from what it gives, out, for z = z_{t-1}, noised with eps [B, E]."""

    def shared_loss(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Tensor:
        """What read-out and embeddings minimise beside the blocks' losses, 0-d; it reaches no block."""
        return batch.tensor.new_zeros(())

    def estimate(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """u^ [B, E] of block t, from what it gives for z = z_{t-1}."""
        return self.embedding.expected(out)

    def _block_scores(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """Scores [B, D] of block t by itself."""
        return out

    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """Through all blocks by Eq. 3, from z_0 = 0 or, if stochastic, from noise and with more at each step."""
        blocks = self._blocks(net)
        z = x.new_zeros(len(x), self.embedding.dim)
        z = eps_like(z, Noise().fold("walk", 0)) if stochastic else z
        yield State(0.0, z, None)
        features = x
        for t in range(1, self.levels.steps + 1):
            features = blocks.trunks[t - 1](x) if t <= len(blocks.trunks) else features
            out = blocks.heads[t - 1](features, z)
            a, b, c = self.levels.step(t)
            scores = self._block_scores(t, out, z)
            z = a * self.estimate(t, out, z) + b * z
            if stochastic:
                z = z + c**0.5 * eps_like(z, Noise().fold("walk", t))
            yield State(t / self.levels.steps, z, scores)

    def _turns(self, noise: Noise) -> Sequence[int]:
        """The blocks that learn in this step."""
        steps = self.levels.steps
        if self.order == "all":
            return range(1, steps + 1)
        if self.order == "random":
            return [1 + int(torch.randint(steps, (), generator=noise.fold("turn").generator()))]
        if self._round is None:
            raise UserError("order: found 'sequential' outside Trainer.fit, which tells epochs. Allowed: all, random")
        return [1 + noise.step % self._round * steps // self._round]

    def _features(
        self, blocks: DenoisingNet, t: int, task: Task, batch: Batch, before: Tensor | None, scalars: Scalars
    ) -> Tensor:
        """What head t reads: of its own trunk attached, of another's detached."""
        if blocks.local and t == 1:
            return self._learn_trunk(blocks, task, batch, scalars)
        if t <= len(blocks.trunks):
            return blocks.trunks[t - 1](batch.tensor)  # type: ignore[no-any-return]
        if before is not None:
            return before.detach()
        with torch.no_grad():
            return blocks.trunks[0](batch.tensor)  # type: ignore[no-any-return]

    def _noised(self, t: int, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """z_t ~ q(z_t|y) and its noise, both [B, E]."""
        u = self.embedding(batch)
        eps = eps_like(u, noise.fold("z", t))
        return self.levels.posterior(t, u, eps), eps
