"""The parts of a net that several processes train: which are whose, their memory, and how all of them come together."""

import torch
from torch import distributed, nn

from bpfree.errors import UserError
from bpfree.mesh import Group, Lane
from bpfree.rule import Rule
from bpfree.types import Batch


class Apart:
    """The parts of a net, each trained by one process.

    Args:
        world: all processes.
        replicas: groups of processes that train the same parts by different rows.
        net: the net.
        rule: bound to the net.
        batch: samples, for their shapes.

    Attributes:
        lane: the parts of this process.
        rows: the processes that train the same parts; None without replicas.
        owned: the ids of the parameters that this process trains.

    Raises:
        UserError: there are more processes than parts, or the replicas do not divide the processes.
    """

    def __init__(self, world: Group, replicas: int, net: nn.Module, rule: Rule, batch: Batch) -> None:
        self._world = world
        self._replicas = replicas
        group, self.rows = _groups(world, replicas)
        self._parts = rule.parts(net, batch)
        self.lane = Lane(group, [part.cost for part in self._parts], messages=rule.passes_features(net))
        self._own = self._parts[self.lane.first : self.lane.end]
        self.owned = {id(p) for part in self._own for p in part.parameters}
        everything = {id(t) for module in (net, rule) for t in module.state_dict(keep_vars=True).values()}
        # Tensors that do not change, such as frozen ones.
        self._in_no_part = everything - {id(tensor) for part in self._parts for tensor in part.tensors}
        self._released: list[tuple[torch.UntypedStorage, int]] = []

    @property
    def is_first_replica(self) -> bool:
        """True if the parts of this process are written by it, and not by another one that has the same parts."""
        return self._world.rank < self.lane.group.size

    @property
    def own_tensors(self) -> set[int]:
        """The ids of the tensors that this process writes: its parts; the first process has what is in no part."""
        own = {id(tensor) for part in self._own for tensor in part.tensors}
        return own | self._in_no_part if self.lane.first == 0 else own

    def release(self) -> None:
        """Free the memory of the parts that other processes train; `gather` fills it again.

        In between, nothing may look at these parts.
        """
        for index, part in enumerate(self._parts):
            if self.lane.first <= index < self.lane.end:
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
        """Give all processes the weights of all parts."""
        self.lane.finish()
        self.restore()
        for index, part in enumerate(self._parts):
            source = self.lane.owner(index)
            for kind in dict.fromkeys(tensor.dtype for tensor in part.tensors):
                some = [tensor for tensor in part.tensors if tensor.dtype == kind]
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
                self.lane.group.broadcast_(flat, source)
                for tensor, values in zip(some, torch.split(flat, [t.numel() for t in some]), strict=True):
                    tensor.data.copy_(values.view_as(tensor))

    def joined(self, sums: dict[str, float], counts: dict[str, int]) -> tuple[dict[str, float], dict[str, int]]:
        """Return the sums of scalars over an epoch, and their numbers, of all parts of the net.

        Args:
            sums: of this process; a scalar of several processes, such as the loss, is the sum of theirs.
            counts: how often each scalar was added.
        """
        total: dict[str, float] = {}
        number: dict[str, int] = {}
        for some, often in self._world.all_of((sums, counts)):
            for name, value in some.items():
                total[name] = total.get(name, 0.0) + value / self._replicas  # each has a part of the rows
                number[name] = max(number.get(name, 0), often[name])
        return total, number

    def parted(self, sums: dict[str, float]) -> dict[str, float]:
        """Return this process's part of sums that `joined` returned, with which a resumed training goes on.

        Args:
            sums: of scalars over the first steps of an epoch.
        """
        return {name: value * self._replicas / self._world.size for name, value in sums.items()}


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
