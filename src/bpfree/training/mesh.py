"""The ways in which several processes share a training. `torchrun` starts them; see docs/mesh.md.

data        each process computes its rows of every batch; gradients are averaged while other parts still compute
population  each process runs some members of a population; the scores are exchanged, the noise is drawn again
blocks      each process trains some parts of the net; features go forward, and nothing comes back. With `replicas`
            several such groups of processes share the rows of each batch, too

The weights become those of one process, up to the rounding of sums in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.inputs import Inputs, apply, main_input, tensors_of
from bpfree.mesh import Group, Members, PassedOn, Share, members_apart, sharing
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.spec import OptionGroup
from bpfree.training.apart import Apart
from bpfree.training.listener import Listener
from bpfree.training.rows import Rows
from bpfree.training.together import Together, world_of
from bpfree.types import Batch, Scalars, Task

MeshName = Literal["auto", "none", "data", "blocks", "population"]
BatchNorm = Literal["synchronised", "per_process"]


@dataclass(frozen=True)
class MeshSpec(OptionGroup):
    """The way in which several processes share a training.

    Attributes:
        name: "data", "population" or "blocks"; "auto" for what suits the rule best; "none" lets each process train by
            itself.
        batch_norm: "synchronised" for the statistics of the whole batch, as in one process; "per_process" for those of
            the rows of each process, which sends nothing.
        replicas: with "blocks", the number of groups of processes that train the same parts by different rows of each
            batch. It must divide the number of processes.
    """

    name: MeshName = "auto"
    batch_norm: BatchNorm = "synchronised"
    replicas: int = 1

    def check(self) -> None:
        """Raise UserError for a value that is not allowed."""
        check_choice("mesh.name", self.name, get_args(MeshName))
        check_choice("mesh.batch_norm", self.batch_norm, get_args(BatchNorm))
        check_positive("mesh.replicas", self.replicas)
        if self.replicas > 1 and self.name != "blocks":
            raise UserError(f"mesh.replicas: found {self.replicas} with mesh {self.name}, allowed: only with blocks")


class Mesh(Together):
    """A training's link to the other processes. With one process, everything is as without it.

    Args:
        spec: the options.
        rule: the rule of the training.
        net: the net. If torch's `DistributedDataParallel` averages its gradients, there is no mesh.

    Attributes:
        mode: "data", "population" or "blocks"; None for one process.
        world: all processes; None for one.
        stops: True if all processes stop after the step that was taken last.
        whole_rows: B, if batches have only the rows of this process; None for whole batches.

    Raises:
        UserError: the rule cannot be split in this way.
    """

    def __init__(self, spec: MeshSpec, rule: Rule, net: nn.Module) -> None:
        spec.check()
        self.mode: str | None = None
        self.stops = False
        self.whole_rows: int | None = None
        self._spec = spec
        self._checked = False  # that all processes have the same batches
        self._asked = False  # this process is to stop
        self._told = False  # one of the processes that share rows is to stop, and all of them know it
        self._target: int | None = None  # the step after which blocks without messages stop
        self._agreed = False
        self._members: Members | None = None
        self._rows: Rows | None = None
        self._apart: Apart | None = None
        super().__init__(None if isinstance(net, DistributedDataParallel) else world_of(spec.name))
        if self.world is not None:
            self.mode = rule.mesh_modes[0] if spec.name == "auto" else spec.name

    @property
    def is_first(self) -> bool:
        """True in the process that prints and writes."""
        return self.world is None or self.world.rank == 0

    @property
    def rows_of_batches(self) -> tuple[int, int] | None:
        """The rows of each batch that this process computes, as `Batches.epoch` takes them; None for all."""
        return None if self._rows is None else self._rows.part

    @property
    def apart(self) -> Apart | None:
        """The parts of the net that this process trains in blocks mode; None if it trains all of them."""
        return self._apart

    @property
    def owned(self) -> set[int] | None:
        """The ids of the parameters that this process trains; None for all."""
        return None if self._apart is None else self._apart.owned

    @property
    def not_capturable(self) -> str | None:
        """Why a step cannot be captured as a graph; None if it can."""
        return None if self.world is None else "several processes exchange tensors within it"

    def bind(self, net: nn.Module, rule: Rule, batch: Batch) -> None:
        """Refuse what cannot be split, and give all processes the weights of the first one.

        Args:
            net: the net.
            rule: bound to the net.
            batch: samples, for their shapes.

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
        rows: Group | None = self.world
        if self.mode == "population":
            self._members, rows = Members(self.world), None
        elif self.mode == "blocks":
            self._apart = Apart(self.world, self._spec.replicas, net, rule, batch)
            rows = self._apart.rows
        if rows is not None:
            synchronised = self._spec.batch_norm == "synchronised"
            self._rows = Rows(rows, net, rule, synchronised=synchronised, owned=self.owned)

    def gradients(self, rule: Rule, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of the whole batch to `.grad`; in blocks mode, of the parts of this process.

        Args:
            rule: the rule.
            net: the net.
            task: the task.
            batch: the whole batch, the same in all processes; or, with `whole_rows`, the rows of this process.
            noise: the key of the step.

        Returns:
            The scalars of this process; `merged` makes them those of the whole batch.
        """
        if self.world is None:
            return rule.gradients(net, task, batch, noise)
        if self.whole_rows is None and not self._checked:
            refuse_other_batches(self.world, batch)
            self._checked = True
        lane = None if self._apart is None else self._apart.lane
        if lane is not None:
            lane.losses = {}
            lane.stop |= self._is_to_stop and lane.first == 0
        if self._members is not None:
            self._members.flag = self._asked

        def compute(task: Task, batch: Batch) -> Scalars:
            rule.lane = lane
            try:
                with members_apart(self._members):
                    return rule.gradients(net, task, batch, noise)
            except PassedOn:
                assert lane is not None
                return lane.losses
            finally:
                rule.lane = None

        told = False
        if self._rows is None:
            scalars = compute(task, batch)
        else:
            scalars, told = self._rows.step(compute, task, batch, self._asked, self.whole_rows)
        self._told |= told or (self._members is not None and self._members.flag)
        # Through a lane, the flag travels with the features, so that later parts stop after the same step.
        self.stops |= self._told if lane is None else lane.stop and lane.messages
        return scalars

    @property
    def _is_to_stop(self) -> bool:
        return self._asked if self._rows is None else self._told

    def refuse_trackers(self, trackers: Sequence[Listener[Any]]) -> None:
        """Raise UserError if a tracker needs all gradients, and each process has those of its parts only.

        Args:
            trackers: what listens to the training.
        """
        wanting = [type(tracker).__name__ for tracker in trackers if tracker.listens_to_gradients]
        if self._apart is not None and wanting:
            raise UserError(
                f"trackers: found {', '.join(wanting)} with mesh blocks, where no process has all gradients. Leave "
                "it out, or use train.mesh=data"
            )

    def merged(self, pending: Sequence[Scalars], samples: int) -> Sequence[Scalars]:
        """Return the scalars of several steps as those of the whole batches; in blocks mode, as they are.

        Args:
            pending: the scalars of each step, of this process.
            samples: B, of a whole batch.
        """
        if self.world is None or self._apart is not None or not pending:
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

    def parted(self, sums: dict[str, float]) -> dict[str, float]:
        """Return this process's part of the sums of a checkpoint; see `Apart.parted`."""
        return sums if self._apart is None else self._apart.parted(sums)

    def share_statistics(self, net: nn.Module) -> None:
        """Give all processes the running statistics of the first one, before an evaluation and a checkpoint.

        Args:
            net: the net, whose batch norm has other statistics in each process.
        """
        if self.world is not None and self._spec.batch_norm == "per_process":
            for module in net.modules():
                for statistic in module.buffers() if isinstance(module, _BatchNorm) else ():
                    self.world.broadcast_(statistic, 0)

    def part(self, batch: Batch) -> Batch:
        """Return as many samples as one process computes of a batch, to measure the memory of its step.

        Args:
            batch: the whole batch.
        """
        if self._rows is None:
            return batch
        return batch.first(-(-len(batch.y) // self._rows.part[1]))

    def begin(self) -> None:
        """Begin a training, perhaps after one that was stopped."""
        self.stops = self._asked = self._told = self._agreed = False
        self._target = None
        if self._apart is not None:
            self._apart.lane.stop = False

    def look_for_stop(self, asked: bool, step: int, *, ends_epoch: bool) -> None:
        """Agree with the other processes if, and after which step, all of them stop; `stops` says it.

        Args:
            asked: True if this process is to stop.
            step: the number of steps that were taken.
            ends_epoch: True after the last step of an epoch.
        """
        self._asked |= asked
        if self.world is None:
            self.stops |= self._asked
            return
        if self._apart is None or self._apart.lane.messages:
            return  # the flag travels with the messages of a step
        # No step sends anything. So each process says once in an epoch where it is: when it is asked to stop, or at the
        # end; the one that is furthest decides.
        if (self._is_to_stop or ends_epoch) and not self._agreed:
            found = self.world.all_of((self._is_to_stop, step))
            self._agreed = True
            if any(stop for stop, _ in found):
                self._target = max(taken for _, taken in found)
        self._agreed &= not ends_epoch
        self.stops |= self._target is not None and step >= self._target


def refuse_other_batches(world: Group, batch: Batch) -> None:
    """Raise UserError if the processes have different batches.

    Args:
        world: the processes.
        batch: that of this process.
    """
    own = [(*part.shape, repr(float(part.double().sum()))) for part in (*tensors_of(batch.x), batch.y)]
    if any(other != own for other in world.all_of(own)):
        raise UserError(
            "batch: the processes have different ones, allowed: the same whole batch in all of them, of which each "
            "takes its part. To train by batches of your own in each process, call rule.gradients and then "
            "bpfree.mesh.average_gradients(net, rule)"
        )
