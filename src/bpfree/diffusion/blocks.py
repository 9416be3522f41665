"""Rules with one block for each of T steps: which blocks learn from a batch, and inference through all blocks."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from bpfree.diffusion.apart import parts_of, refuse_blocks
from bpfree.diffusion.net import DenoisingNet
from bpfree.diffusion.rule import DiffusionRule, Options, State, eps_like
from bpfree.diffusion.schedules import MOVED_TO_SCHEDULE, ScheduleSpec
from bpfree.diffusion.side_by_side import heads_at_once, side_by_side
from bpfree.errors import UserError, check_choice
from bpfree.grad import backward, first_trainable
from bpfree.mesh import Part, drawn_for_samples
from bpfree.noise import Noise, counts
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

    Attributes:
        side_by_side: True to compute heads of equal form as one batched product where blocks share a trunk and all of
            them learn from a batch. None, the default: on all devices but the CPU. The gradients are the same up to
            rounding. The activations of the heads are in memory together, but not more than about 1 GiB of them: then
            fewer heads are computed at once.
        scores_by_readout: True if a block's scores come from the read-out, which the process of the last block has.
    """

    mesh_modes: ClassVar[tuple[str, ...]] = ("data", "blocks")
    side_by_side: bool | None = None
    scores_by_readout: ClassVar[bool] = False
    _abar: Tensor  # [T + 1]: numbers of the levels that a step needs on the device
    _signal: Tensor
    _sigma: Tensor
    _rows: Tensor
    moved_options: ClassVar[Mapping[str, str]] = MOVED_TO_SCHEDULE

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a rule that defines `block_loss`, the method of earlier versions, which nothing calls."""
        super().__init_subclass__(**options)
        if "block_loss" in vars(cls):
            raise UserError(
                f"{cls.__name__}.block_loss: nothing calls it. Define block_losses(turns, out, z, eps, task, batch), "
                "which returns the losses of several blocks, [K]"
            )

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
        abar = self.levels.abar
        # On the device, since a step must not copy numbers to it. Not saved: they follow from the options.
        self._keep("_abar", abar, net)
        self._keep("_signal", abar**0.5, net)
        self._keep("_sigma", (1 - abar) ** 0.5, net)
        self.register_buffer("_rows", torch.arange(len(abar)), persistent=False)

    def _keep(self, name: str, values: Tensor, net: nn.Module) -> None:
        """Keep numbers of the blocks in a buffer, in the type of the net but at least in float32."""
        like = first_trainable(net)
        values = values.to(like.device, torch.promote_types(like.dtype, torch.float32))
        self.register_buffer(name, values, persistent=False)

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

        Each block runs forward and backward before the next one starts, so only one block's activations are in memory;
        or several blocks do so together, see `side_by_side`. The scalar `accuracy` is the accuracy of block 1 alone,
        which sees least of the label; the input z of later blocks tells them much of it.
        """
        self.refuse_unbound()
        blocks, scalars = self._blocks(net), Scalars()
        factor = 1 if self.order == "all" else len(blocks.heads)  # Eq. 61: one block's loss stands for the sum over T
        total = batch.tensor.new_zeros((), dtype=torch.float32)
        features: Tensor | None = None
        for turns in self._groups(blocks, batch, noise):
            # Keyed by the block: its dropout does not depend on which other blocks learn in this step.
            with noise.fold("block", turns[0]).global_rng(batch.device):
                features = self._features(blocks, turns[0], task, batch, features, scalars)
                if self.lane is not None and turns[0] == 1 and self.passes_features(net):
                    for rank in range(1, self.lane.group.size):
                        self.lane.send(features.detach(), len(batch.y), rank)
                # Block t sees level t - 1, as in inference, where it reads the z that block t - 1 made.
                z, eps = self._noised(range(turns[0] - 1, turns[-1]), batch, noise)
                out = self._outputs(blocks, turns, features, z)
                losses = factor * self.block_losses(turns, out, z, eps, task, batch)
                loss = losses.sum()
            backward(loss)  # inside the loop: it frees these blocks' activations before the next block runs
            # Without the factor, so that curves of different orders can be compared.
            names = [f"loss/block{t}" for t in turns]
            scalars |= dict(zip(names, (losses.detach() / factor).unbind(), strict=True))
            total = total + loss.detach()
            readable = self.lane is None or self.lane.is_last or not self.scores_by_readout
            if turns[0] == 1 and classes_of(task) is not None and readable:
                right = self._block_scores(1, out[0].detach(), z[0]).argmax(1) == batch.y
                scalars["accuracy"] = right.float().mean()
        if self.lane is not None and not self.lane.is_last:
            return scalars | {"loss": total}
        shared = self.shared_loss(net, task, batch, noise)
        backward(shared)
        return scalars | {"loss/readout": shared.detach(), "loss": total + shared.detach()}

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if blocks in several processes would have to know what others learn."""
        super().refuse_mesh(mode, net)
        if mode == "blocks":
            refuse_blocks(self, self._blocks(net))

    def parts(self, net: nn.Module, batch: Batch) -> list[Part]:
        """Return the blocks; the first one has a shared trunk, and the last one what the rule itself trains."""
        return parts_of(self, self._blocks(net), batch)

    def passes_features(self, net: nn.Module) -> bool:
        """Return True if the trunk is shared: the process of block 1 sends its features to the others."""
        return len(self._blocks(net).trunks) == 1

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 1 if every block learns from a batch, or 1/T if one of T blocks does."""
        return 1 if self.order == "all" else 1 / len(self._blocks(net).heads)

    @abstractmethod
    def block_losses(self, turns: range, out: Tensor, z: Tensor, eps: Tensor, task: Task, batch: Batch) -> Tensor:
        """Return the losses of K blocks, [K]; K is 1 if blocks learn one by one.

        Args:
            turns: the numbers of the blocks, from 1 to T.
            out: the blocks' outputs, [K, B, D] or [K, B, E].
            z: the blocks' inputs z_{t-1}, [K, B, E].
            eps: the noise in z, [K, B, E].
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
        z = x.new_zeros(x.shape[0], self.embedding.dim)
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

    def _turns(self, noise: Noise) -> range:
        """The numbers of the blocks that learn in this step."""
        steps = self.levels.steps
        if self.order == "all":
            return range(1, steps + 1)
        if self.order == "random":
            t = 1 + int(torch.randint(steps, (), generator=noise.fold("turn").generator()))
            return range(t, t + 1)
        if self._round is None:
            raise UserError(
                "order: found 'sequential' outside Trainer.fit, and only fit knows the epochs. Allowed: all, random"
            )
        # From left to right: ((step % round) T) // round is 0 in the first T-th part of a round, and T - 1 in the last.
        t = 1 + noise.step % self._round * steps // self._round
        return range(t, t + 1)

    def _groups(self, blocks: DenoisingNet, batch: Batch, noise: Noise) -> list[range]:
        """The numbers of the blocks that learn in this step; those of one range are computed side by side."""
        turns, most = self._own(self._turns(noise)), 1
        wanted = counts(batch.device) if self.side_by_side is None else self.side_by_side
        if wanted and len(turns) > 1 and len(blocks.trunks) == 1:
            most = heads_at_once(list(blocks.heads), len(batch.y))
        return [turns[start : start + most] for start in range(0, len(turns), most)]

    def _own(self, turns: range) -> range:
        """The blocks among them that this process trains."""
        if self.lane is None:
            return turns
        return range(max(turns.start, self.lane.first + 1), min(turns.stop, self.lane.end + 1))

    def _outputs(self, blocks: DenoisingNet, turns: range, features: Tensor, z: Tensor) -> Tensor:
        """The outputs [K, B, ...] of blocks for features [B, H], which only the first block reads attached."""
        if len(turns) > 1:
            return side_by_side(list(blocks.heads)[turns[0] - 1 : turns[-1]], features, z)
        return blocks.heads[turns[0] - 1](features, z[0]).unsqueeze(0)  # type: ignore[no-any-return]

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
        if self.lane is not None and self.lane.first:
            return self.lane.receive(len(batch.y), 0, batch.device)
        # Block 1 owns the shared trunk and does not learn in this step, so nothing needs a graph through it.
        with torch.no_grad():
            return blocks.trunks[0](batch.tensor)  # type: ignore[no-any-return]

    def _noised(self, levels: range, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Samples z_t ~ q(z_t|y) of K levels t, and the noise in them, both [K, B, E]."""
        u = self.embedding(batch)
        eps = self._eps(levels, u, noise)
        if len(levels) == 1:
            return self.levels.posterior(levels[0], u, eps), eps
        some = slice(levels.start, levels.stop)
        z = u * self._signal[some, None, None] + eps * self._sigma[some, None, None]
        return z.to(u.dtype), eps

    def _eps(self, levels: range, like: Tensor, noise: Noise) -> Tensor:
        """Standard normal numbers [K, B, E] that are keyed by the level."""
        if counts(like.device):
            rows = self._rows[levels.start : levels.stop]
            size = like[0].numel()
            return drawn_for_samples(
                lambda b: noise.fold("z").rows("normal", rows, b * size).view(len(levels), b, *like.shape[1:]),
                len(like),
                dim=1,
            ).to(like.dtype)
        return torch.stack([eps_like(like, noise.fold("z", t)) for t in levels])
