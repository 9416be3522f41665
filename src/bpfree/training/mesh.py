"""How several processes share a training. `torchrun` starts them; see docs/mesh.md.

data        each process computes its rows of every batch; gradients are averaged while other parts still compute
population  each process runs some members of a population; the scores are exchanged, the noise is drawn again
blocks      each process trains some parts of the net; see `bpfree.training.blocks`

The weights become those of one process, up to the rounding of sums in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bpfree.errors import UserError, check_choice
from bpfree.grad import trainable
from bpfree.inputs import Inputs, apply, main_input
from bpfree.local.rule import LocalRule
from bpfree.mesh import Group, Members, Share, join, launched, members_apart, sharing
from bpfree.mesh.average import Average, refuse_different
from bpfree.mesh.batch_norm import SynchronisedNorms
from bpfree.mesh.draws import DrawsForWholeBatch
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.spec import OptionGroup
from bpfree.types import Batch, Scalars, Task, weight_of

_TINY = 1e-12
MeshName = Literal["auto", "none", "data", "blocks", "population"]


@dataclass(frozen=True)
class MeshSpec(OptionGroup):
    """How several processes share a training.

    Attributes:
        name: "data", "population" or "blocks"; "auto" for what suits the rule best; "none" to refuse several processes.
        batch_norm: "synchronised" for the statistics of the whole batch, as in one process; "per_process" for those of
            the rows of each process, which sends nothing.
    """

    name: MeshName = "auto"
    batch_norm: Literal["synchronised", "per_process"] = "synchronised"

    def check(self) -> None:
        """Raise UserError for a value that is not allowed."""
        check_choice("mesh.name", self.name, get_args(MeshName))
        check_choice("mesh.batch_norm", self.batch_norm, ("synchronised", "per_process"))


class Mesh:
    """What the processes of a training share. With one process, everything is as without a mesh.

    Args:
        spec: the options.
        rule: the rule of the training.

    Attributes:
        mode: "data", "population" or "blocks"; None for one process.
        world: all processes; None for one.

    Raises:
        UserError: the rule cannot be split in this way.
    """

    def __init__(self, spec: MeshSpec, rule: Rule) -> None:
        spec.check()
        self.mode: str | None = None
        self.world: Group | None = None
        self.stops = False
        self._asked = False
        self._draws = True
        self._seen = False
        self._spec = spec
        if launched() == 1:
            return
        if spec.name == "none":
            raise UserError(
                f"mesh: found none, but {launched()} processes were started. Use train.mesh=auto, or start one process"
            )
        join()
        self.mode = rule.mesh_modes[0] if spec.name == "auto" else spec.name
        self.world = Group()
        self._members = Members(self.world) if self.mode == "population" else None

    @property
    def is_first(self) -> bool:
        """True in the process that prints and writes."""
        return self.world is None or self.world.rank == 0

    @property
    def not_capturable(self) -> str | None:
        """Why a step cannot be captured as a graph; None if it can."""
        return None if self.world is None else "several processes exchange tensors within it"

    def bind(self, net: nn.Module, rule: Rule) -> None:
        """Refuse what cannot be split, and give all processes the weights of the first one.

        Args:
            net: the net.
            rule: bound to the net.

        Raises:
            UserError: the rule or the net cannot be split in this way.
        """
        if self.world is None:
            return
        assert self.mode is not None
        rule.refuse_mesh(self.mode, net)
        for module in (net, rule):
            for tensor in module.state_dict().values():
                self.world.broadcast_(tensor, 0)
        self._norms = self._spec.batch_norm == "synchronised" and any(
            isinstance(module, _BatchNorm) for module in net.modules()
        )
        self._units = (
            [rule.unit(net, index) for index in range(len(rule.segments))] if isinstance(rule, LocalRule) else []
        )

    def gradients(self, rule: Rule, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of the whole batch to `.grad`, with the same bits in all processes.

        Args:
            rule: the rule.
            net: the net.
            task: the task.
            batch: the whole batch, the same in all processes.
            noise: the key of the step.

        Returns:
            The scalars of this process; `merged` makes them those of the whole batch.
        """
        if self.world is None:
            return rule.gradients(net, task, batch, noise)
        if self._members is not None:
            self._members.flag = self._asked
            with members_apart(self._members):
                scalars = rule.gradients(net, task, batch, noise)
            self.stops |= self._members.flag
            return scalars
        return self._by_rows(rule, net, task, batch, noise)

    def _by_rows(self, rule: Rule, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        assert self.world is not None
        share = Share.of(self.world, len(batch.y))
        own = Batch(apply(batch.x, lambda x: x[share.rows]), batch.y[share.rows])
        average = Average(self.world, share.weight)
        with ExitStack() as stack:
            stack.enter_context(sharing(share))
            if self._norms:
                stack.enter_context(SynchronisedNorms(share))
            draws = stack.enter_context(DrawsForWholeBatch(share)) if self._draws else None
            with self._parts_sent(rule, average):
                scalars = rule.gradients(net, _of_rows(task, batch, own, share), own, noise)
        if draws is not None:  # a look at every operation takes time, so only nets that draw numbers have it
            self._draws = draws.drew
        if not self._seen:
            self._seen = True
            refuse_different(self.world, [*net.named_parameters(), *rule.named_parameters()])
        # Scores of members were averaged already, so that gradients are equal.
        learned = trainable(net, rule) if rule.needs_derivatives else []
        self.stops |= average.finish(learned, self._asked)
        return scalars

    @contextmanager
    def _parts_sent(self, rule: Rule, average: Average) -> Iterator[None]:
        """Send the gradients of a segment as soon as it has learned, while later segments compute."""
        if not isinstance(rule, LocalRule):
            yield
            return
        fused = rule.segment_done

        def done(index: int) -> None:
            average.start(self._units[index])
            if fused is not None:  # it uses the gradients up, so they must have come
                average.send()
                average.wait()
                fused(index)

        rule.segment_done = done
        try:
            yield
        finally:
            rule.segment_done = fused

    def merged(self, pending: Sequence[Scalars], samples: int) -> Sequence[Scalars]:
        """Return the scalars of several steps as those of the whole batches, in all processes.

        Args:
            pending: the scalars of each step, of this process.
            samples: B, of a whole batch.
        """
        if self.world is None or not pending:
            return pending
        values = torch.stack([value.double() for each in pending for value in each.values()])
        if self.mode == "population":
            values = self.world.broadcast_(values, 0)
        else:
            values = Share.of(self.world, samples).mean(values)
        found = iter(values.unbind())
        return [{name: next(found) for name in each} for each in pending]

    def shared(self, predict: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
        """Return a function that predicts as `predict` does, where each process computes its rows.

        Args:
            predict: samples [B, ...] -> outputs [B, D].
        """
        world = self.world
        if world is None:
            return predict

        def predict_rows(x: Inputs) -> Tensor:
            samples = len(main_input(x))
            if samples < world.size:
                return predict(x)
            share = Share.of(world, samples)
            with sharing(share):
                out = predict(apply(x, lambda part: part[share.rows]))
            return world.joined(out, share.counts)

        return predict_rows

    def ask_to_stop(self) -> None:
        """Let the training stop after a step, which will be the same in all processes; `stops` is True then."""
        self._asked = True
        self.stops |= self.world is None


def _of_rows(task: Task, whole: Batch, own: Batch, share: Share) -> Task:
    """Return the task for the rows of a process: its means count so that their average is that of the whole batch.

    Means differ from means over samples if samples have weights, such as those of their classes.
    """
    if not isinstance(weight_of(task, "loss", own), Tensor):
        return task

    def factor(metric: str) -> Tensor:
        part, all_of_it = (torch.as_tensor(weight_of(task, metric, batch)).double() for batch in (own, whole))
        return part / all_of_it.clamp_min(_TINY) / share.weight

    return _OfRows(task, factor)


class _OfRows:
    """A task whose means over some rows are multiplied by factors."""

    def __init__(self, task: Task, factor: Callable[[str], Tensor]) -> None:
        self._task: Any = task
        self._factor = factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        loss: Tensor = self._task.loss(out, batch) * self._factor("loss")
        return loss

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        return {name: value * self._factor(name) for name, value in self._task.metrics(out, batch).items()}

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        others = self._task.other_metrics(out, batch)
        return {name: value * self._factor(name) for name, value in others.items()}
