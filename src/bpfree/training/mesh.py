"""How several processes share a training. `torchrun` starts them; see docs/mesh.md.

data        each process computes its rows of every batch; gradients are averaged while other parts still compute
population  each process runs some members of a population; the scores are exchanged, the noise is drawn again
blocks      each process trains some parts of the net; features go forward, and nothing comes back. With `replicas`
            several such groups of processes share the rows of each batch, too

The weights become those of one process, up to the rounding of sums in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.inputs import Inputs, apply, main_input
from bpfree.mesh import Group, Lane, Members, Part, PassedOn, Share, join, launched, members_apart, sharing
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.spec import OptionGroup
from bpfree.training.listener import Listener
from bpfree.training.rows import Rows
from bpfree.types import Batch, Scalars, Task

MeshName = Literal["auto", "none", "data", "blocks", "population"]


@dataclass(frozen=True)
class MeshSpec(OptionGroup):
    """How several processes share a training.

    Attributes:
        name: "data", "population" or "blocks"; "auto" for what suits the rule best; "none" to refuse several processes.
        batch_norm: "synchronised" for the statistics of the whole batch, as in one process; "per_process" for those of
            the rows of each process, which sends nothing.
        replicas: with "blocks", the number of groups of processes that train the same parts by different rows of each
            batch. It must divide the number of processes.
    """

    name: MeshName = "auto"
    batch_norm: Literal["synchronised", "per_process"] = "synchronised"
    replicas: int = 1

    def check(self) -> None:
        """Raise UserError for a value that is not allowed."""
        check_choice("mesh.name", self.name, get_args(MeshName))
        check_choice("mesh.batch_norm", self.batch_norm, ("synchronised", "per_process"))
        check_positive("mesh.replicas", self.replicas)
        if self.replicas > 1 and self.name != "blocks":
            raise UserError(f"mesh.replicas: found {self.replicas} with mesh {self.name}, allowed: only with blocks")


class Mesh:
    """What the processes of a training share. With one process, everything is as without a mesh.

    Args:
        spec: the options.
        rule: the rule of the training.

    Attributes:
        mode: "data", "population" or "blocks"; None for one process.
        world: all processes; None for one.
        stops: True if all processes stop after the step that was taken last.
        total: B, if batches have only the rows of this process; None for whole batches.

    Raises:
        UserError: the rule cannot be split in this way.
    """

    def __init__(self, spec: MeshSpec, rule: Rule) -> None:
        spec.check()
        self.mode: str | None = None
        self.world: Group | None = None
        self.stops = False
        self.total: int | None = None
        self._spec = spec
        self._asked = False  # this process is to stop
        self._told = False  # one of the processes that share rows is to stop, and all of them know it
        self._target: int | None = None  # the step after which blocks without messages stop
        self._agreed = False
        self._members: Members | None = None
        self._rows: Rows | None = None
        self._lane: Lane | None = None
        self._parts: list[Part] = []
        self._released: list[tuple[torch.UntypedStorage, int]] = []
        self._in_no_part: set[int] = set()  # the ids of tensors that do not change, such as frozen ones
        if launched() == 1:
            return
        if spec.name == "none":
            raise UserError(
                f"mesh: found none, but {launched()} processes were started. Use train.mesh=auto, or start one process"
            )
        join()
        self.mode = rule.mesh_modes[0] if spec.name == "auto" else spec.name
        self.world = Group()

    @property
    def is_first(self) -> bool:
        """True in the process that prints and writes."""
        return self.world is None or self.world.rank == 0

    @property
    def part(self) -> tuple[int, int] | None:
        """The rows of each batch that this process computes, as `Batches.epoch` takes them; None for all."""
        return None if self._rows is None else self._rows.part

    @property
    def lane(self) -> Lane | None:
        """The parts of this process in blocks mode; None if it trains all of them."""
        return self._lane

    @property
    def is_first_replica(self) -> bool:
        """True if the parts of this process are written by it, and not by another one that has the same parts."""
        return self.world is None or self._lane is None or self.world.rank < self._lane.group.size

    @property
    def own_tensors(self) -> set[int]:
        """The ids of the tensors that this process writes in blocks mode: its parts; the first has what is in none."""
        assert self._lane is not None
        first, end = self._lane.first, self._lane.end
        own = {id(tensor) for part in self._parts[first:end] for tensor in part.tensors}
        return own | self._in_no_part if first == 0 else own

    @property
    def not_capturable(self) -> str | None:
        """Why a step cannot be captured as a graph; None if it can."""
        return None if self.world is None else "several processes exchange tensors within it"

    @property
    def owned(self) -> set[int] | None:
        """The ids of the parameters that this process trains; None for all."""
        if self._lane is None:
            return None
        return {id(p) for part in self._parts[self._lane.first : self._lane.end] for p in part.parameters}

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
            lane, rows = _groups(self.world, self._spec.replicas)
            self._parts = rule.parts(net, batch)
            self._lane = Lane(lane, [part.cost for part in self._parts])
            everything = {id(t) for module in (net, rule) for t in module.state_dict(keep_vars=True).values()}
            self._in_no_part = everything - {id(tensor) for part in self._parts for tensor in part.tensors}
        if rows is not None:
            synchronised = self._spec.batch_norm == "synchronised"
            self._rows = Rows(rows, net, rule, synchronised=synchronised, owned=self.owned)

    def gradients(self, rule: Rule, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of the whole batch to `.grad`; in blocks mode, of the parts of this process.

        Args:
            rule: the rule.
            net: the net.
            task: the task.
            batch: the whole batch, the same in all processes; or, with `total`, the rows of this process.
            noise: the key of the step.

        Returns:
            The scalars of this process; `merged` makes them those of the whole batch.
        """
        if self.world is None:
            return rule.gradients(net, task, batch, noise)
        if self._lane is not None:
            self._lane.losses = {}
            self._lane.stop |= self._is_to_stop and self._lane.first == 0

        def compute(task: Task, batch: Batch) -> Scalars:
            with members_apart(self._members), self._apart(rule):
                try:
                    return rule.gradients(net, task, batch, noise)
                except PassedOn:
                    assert self._lane is not None
                    return self._lane.losses

        if self._members is not None:
            self._members.flag = self._asked
        told = False
        if self._rows is None:
            scalars = compute(task, batch)
        else:
            scalars, told = self._rows.step(compute, task, batch, self._asked, self.total)
        self._told |= told or (self._members is not None and self._members.flag)
        # Through a lane, the flag travels with the features, so that later parts stop after the same step.
        self.stops |= self._told if self._lane is None else self._lane.stop and self._lane.has_messages
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
        if self._lane is not None and wanting:
            raise UserError(
                f"trackers: found {', '.join(wanting)} with mesh blocks, where no process has all gradients. Leave "
                "it out, or use train.mesh=data"
            )

    @contextmanager
    def _apart(self, rule: Rule) -> Iterator[None]:
        rule.lane = self._lane
        try:
            yield
        finally:
            rule.lane = None

    def release(self) -> None:
        """Free the memory of the parts that other processes train; `gather` fills it again.

        In between, nothing may look at these parts.
        """
        if self._lane is None:
            return
        for index, part in enumerate(self._parts):
            if self._lane.first <= index < self._lane.end:
                continue
            for tensor in part.private:
                storage = tensor.untyped_storage()
                if storage.nbytes() == tensor.numel() * tensor.itemsize:  # else other tensors lie in it, too
                    self._released.append((storage, storage.nbytes()))
                    storage.resize_(0)

    def restore(self) -> None:
        """Give the parts that other processes train memory again, with values of no meaning."""
        for storage, size in self._released:
            storage.resize_(size)
        self._released.clear()

    def gather(self) -> None:
        """Give all processes the weights of all parts, which each process has trained by itself."""
        if self._lane is None:
            return
        self._lane.finish()
        self.restore()
        for index, part in enumerate(self._parts):
            source = self._lane.owner(index)
            for kind in dict.fromkeys(tensor.dtype for tensor in part.tensors):
                some = [tensor for tensor in part.tensors if tensor.dtype == kind]
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
                self._lane.group.broadcast_(flat, source)
                for tensor, values in zip(some, torch.split(flat, [t.numel() for t in some]), strict=True):
                    tensor.data.copy_(values.view_as(tensor))

    def merged(self, pending: Sequence[Scalars], samples: int) -> Sequence[Scalars]:
        """Return the scalars of several steps as those of the whole batches; in blocks mode, as they are.

        Args:
            pending: the scalars of each step, of this process.
            samples: B, of a whole batch.
        """
        if self.world is None or self._lane is not None or not pending:
            return pending
        values = torch.stack([value.double() for each in pending for value in each.values()])
        if self.mode == "population":
            values = self.world.broadcast_(values, 0)
        else:
            values = Share.of(self.world, samples).mean(values)
        found = iter(values.unbind())
        return [{name: next(found) for name in each} for each in pending]

    def joined(self, sums: dict[str, float], counts: dict[str, int]) -> tuple[dict[str, float], dict[str, int]]:
        """Return the sums of scalars over an epoch, and their numbers, of all parts of the net.

        Args:
            sums: of this process; a scalar of several processes, such as the loss, is the sum of theirs.
            counts: how often each scalar was added.
        """
        if self.world is None or self._lane is None:
            return sums, counts
        replicas = self._spec.replicas  # each scalar is in so many processes, with a part of the rows
        total: dict[str, float] = {}
        number: dict[str, int] = {}
        for some, often in self.world.all_of((sums, counts)):
            for name, value in some.items():
                total[name] = total.get(name, 0.0) + value / replicas
                number[name] = max(number.get(name, 0), often[name])
        return total, number

    def parted(self, sums: dict[str, float]) -> dict[str, float]:
        """Return this process's part of sums that `joined` returned, with which a resumed training goes on.

        Args:
            sums: of scalars over the first steps of an epoch.
        """
        if self.world is None or self._lane is None:
            return sums
        return {name: value * self._spec.replicas / self.world.size for name, value in sums.items()}

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
        if self._lane is None or self._lane.has_messages:
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


def _groups(world: Group, replicas: int) -> tuple[Group, Group | None]:
    """The processes that train different parts by the same rows, and those that train the same parts.

    Raises:
        UserError: the number of replicas does not divide that of the processes.
    """
    if replicas == 1:
        return world, None
    if world.size % replicas or replicas == world.size:
        raise UserError(
            f"mesh.replicas: found {replicas} for {world.size} processes, allowed: a divisor of {world.size} that is "
            "less than it"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (replicas, world.size // replicas)
    mesh = distributed.device_mesh.init_device_mesh(device, shape, mesh_dim_names=("rows", "parts"))
    return Group(mesh.get_group("parts")), Group(mesh.get_group("rows"))
