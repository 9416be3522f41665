"""Rules with one block for each of T steps: which blocks learn from a batch, and inference through all blocks."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import DiffusionRule, Options, State, eps_like
from bpfree.diffusion.schedules import MOVED_TO_SCHEDULE, ScheduleSpec
from bpfree.errors import UserError, check_choice
from bpfree.grad import backward
from bpfree.noise import Noise
from bpfree.spec import Spec
from bpfree.types import Batch, Epochs, Scalars, Task, classes_of

Order = Literal["all", "random", "sequential"]


class BlockRule(DiffusionRule):
    """A rule whose T blocks learn independently: block t sees z_{t-1} ~ q(z_{t-1}|y). Inference runs all blocks.

    Args:
        schedule: how the share of the label rises from block to block: "cosine" or "linear", with the ends `abar_min`
            (abar_0, the share of the label in what block 1 sees) and `abar_max` (abar_T, which sets the weight of the
            last block).
        order: which blocks learn from a batch. "all": every block. "random": one block, drawn anew for each batch,
            with T times its loss. "sequential": one block, also with T times its loss; block 1 takes the first T-th
            part of each epoch's batches, block 2 the next part, and so on. (In the paper's Algorithm 1 each block
            takes a whole pass.)
        options: see `DiffusionRule`.
    """

    moved_options: ClassVar[Mapping[str, str]] = MOVED_TO_SCHEDULE

    def __init__(self, *, schedule: ScheduleSpec | Spec, order: Order, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        schedule = ScheduleSpec.of(schedule, "schedule")
        check_choice("schedule.name", schedule.name, ("cosine", "linear"))
        check_choice("order", order, ("all", "random", "sequential"))
        self.schedule = schedule.build()
        self.order = order
        # The number of steps in which every block has its turn: an epoch, or T if an epoch has fewer batches.
        self._round: int | None = None

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Bind as `DiffusionRule` does, and compute the T + 1 noise levels for the net's T blocks."""
        super().bind(net, task, batch)
        self.levels = self.schedule.levels(len(self._blocks(net).heads))

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Prepare the embedding, and learn how many batches the blocks share with `order: sequential`.

        Args:
            data: the training batches.
            steps: the number of training steps in all epochs.
            resumed: True if the training goes on from a checkpoint.

        Raises:
            UserError: there are fewer steps than blocks, so that some block would never learn.
        """
        if self.order == "sequential" and steps < self.levels.steps:
            raise UserError(
                f"epochs: found {steps // len(data)} of {len(data)} batches, allowed with order: sequential: at least "
                f"{self.levels.steps} batches in all, one for each block"
            )
        super().begin(data, steps=steps, resumed=resumed)
        # With fewer batches in an epoch than blocks, some blocks would never have a turn.
        self._round = max(len(data), self.levels.steps)

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of the blocks that learn from this batch, and return their losses.

        Each block runs forward and backward before the next one starts, so only one block's activations are in memory.
        The scalar `accuracy` is the accuracy of block 1 alone, which sees least of the label; the input z of later
        blocks tells them much of it.
        """
        self.refuse_unbound()
        blocks, scalars = self._blocks(net), Scalars()
        turns = self._turns(noise)
        factor = 1 if self.order == "all" else len(blocks.heads)  # Eq. 61: one block's loss stands for the sum over T
        total = batch.tensor.new_zeros((), dtype=torch.float32)
        features: Tensor | None = None
        for t in turns:
            # Keyed by the block: its dropout does not depend on which other blocks learn in this step.
            with noise.fold("block", t).global_rng(batch.device):
                features = self._features(blocks, t, task, batch, features, scalars)
                # Block t sees level t - 1, as in inference, where it reads the z that block t - 1 made.
                z, eps = self._noised(t - 1, batch, noise)
                out = blocks.heads[t - 1](features, z)
                loss = factor * self.block_loss(t, out, z, eps, task, batch)
            backward(loss)  # inside the loop: it frees this block's activations before the next block runs
            # Without the factor, so that curves of different orders can be compared.
            scalars[f"loss/block{t}"] = loss.detach() / factor
            total = total + loss.detach()
            if t == 1 and classes_of(task) is not None:
                right = self._block_scores(1, out.detach(), z).argmax(1) == batch.y
                scalars["accuracy"] = right.float().mean()
        shared = self.shared_loss(net, task, batch, noise)
        backward(shared)
        return scalars | {"loss/readout": shared.detach(), "loss": total + shared.detach()}

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 1 if every block learns from a batch, or 1/T if one of T blocks does."""
        return 1 if self.order == "all" else 1 / len(self._blocks(net).heads)

    @abstractmethod
    def block_loss(self, t: int, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """Return the loss of block t, 0-d.

        Args:
            t: the block, from 1 to T.
            out: the block's output, [B, D] or [B, E].
            z: the block's input z_{t-1}, [B, E].
            eps: the noise in z, [B, E].
            task: the task.
            batch: the batch with its labels.
        """

    def shared_loss(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Tensor:
        """Return the loss of the read-out and of learned embeddings, 0-d; its gradient does not reach any block."""
        return batch.tensor.new_zeros(())

    def estimate(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """Return block t's estimate u^ [B, E] of the embedding.

        Args:
            t: the block, from 1 to T.
            out: the block's output, [B, D] or [B, E].
            z: the block's input z_{t-1}, [B, E].
        """
        return self.embedding.expected(out)

    def _block_scores(self, t: int, out: Tensor, z: Tensor) -> Tensor:
        """The scores [B, D] of block t by itself."""
        return out

    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """Yield the states of inference through all blocks by Eq. 3.

        Args:
            net: the net.
            x: samples [B, ...].
            stochastic: True to start from noise and add more at each step; False to start from z_0 = 0 without noise.
        """
        blocks = self._blocks(net)
        z = x.new_zeros(len(x), self.embedding.dim)
        # Noise without the seed of the run: the same samples always get the same prediction.
        z = eps_like(z, Noise().fold("walk", 0)) if stochastic else z
        yield State(0.0, z, None)
        # A start value for the type checker. It is never read, because block 1 always has a trunk.
        features = x
        for t in range(1, self.levels.steps + 1):
            features = blocks.trunks[t - 1](x) if t <= len(blocks.trunks) else features
            out = blocks.heads[t - 1](features, z)
            a, b, c = self.levels.step(t)
            scores = self._block_scores(t, out, z)
            # Without noise, z is the mean of the posterior of Eq. 3.
            z = a * self.estimate(t, out, z) + b * z
            if stochastic:
                z = z + c**0.5 * eps_like(z, Noise().fold("walk", t))
            yield State(t / self.levels.steps, z, scores)

    def _turns(self, noise: Noise) -> Sequence[int]:
        """The numbers of the blocks that learn in this step."""
        steps = self.levels.steps
        if self.order == "all":
            return range(1, steps + 1)
        if self.order == "random":
            return [1 + int(torch.randint(steps, (), generator=noise.fold("turn").generator()))]
        if self._round is None:
            raise UserError(
                "order: found 'sequential' outside Trainer.fit, and only fit knows the epochs. Allowed: all, random"
            )
        # From left to right: ((step % round) T) // round is 0 in the first T-th part of a round, and T - 1 in the last.
        return [1 + noise.step % self._round * steps // self._round]

    def _features(
        self, blocks: DenoisingNet, t: int, task: Task, batch: Batch, before: Tensor | None, scalars: Scalars
    ) -> Tensor:
        """The features [B, H] that head t reads: from its own trunk attached, from another block's trunk detached.

        `before` are the features of the block before, if it learned in this step too.
        """
        if blocks.local and t == 1:
            return self._learn_trunk(blocks, task, batch, scalars)
        if t <= len(blocks.trunks):
            return blocks.trunks[t - 1](batch.tensor)  # type: ignore[no-any-return]
        if before is not None:  # the shared trunk ran for block 1 in this step already
            return before.detach()
        # Block 1 owns the shared trunk and does not learn in this step, so nothing needs a graph through it.
        with torch.no_grad():
            return blocks.trunks[0](batch.tensor)  # type: ignore[no-any-return]

    def _noised(self, t: int, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """A sample z_t ~ q(z_t|y) and the noise in it, both [B, E]."""
        u = self.embedding(batch)
        eps = eps_like(u, noise.fold("z", t))
        return self.levels.posterior(t, u, eps), eps
