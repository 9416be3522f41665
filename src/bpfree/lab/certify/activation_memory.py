"""Bytes of activations that are alive while a net runs, layer after layer."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bpfree.lab.certify.layers import Layers, unwrapped

_ALWAYS = 2  # parts that every rule keeps alive: the part at work, and the one that computed its input
_A_FEW = 3  # parts that any rule may keep alive: the part at work, its input, and features that all parts read
_SHARE_THAT_COUNTS = 1 / 20  # of a part's activations; a part that keeps less keeps a result (a loss), not activations


class ActivationMemory(NamedTuple):
    """Activations of one call of `gradients`: outputs of modules, and tensors that autograd keeps for backward.

    Attributes:
        curve: (layer, bytes) for each layer in the order of execution: the most bytes that are alive before the next
            layer begins.
        total_bytes: bytes of all activations of the call, alive or not.
        parts_at_once: the largest number of parts that have at least a twentieth of their activations alive at once.
        alive: for each part in the order of execution, the largest number of parts up to it that are alive at once
            while it works, counted in the same way.
    """

    curve: tuple[tuple[str, int], ...]
    total_bytes: int
    parts_at_once: int
    alive: tuple[int, ...]

    @property
    def parts(self) -> int:
        """The number of parts that ran."""
        return len(self.alive)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive at once."""
        return max((size for _, size in self.curve), default=0)

    @property
    def grows(self) -> bool | None:
        """True if more parts are alive while later parts work, so that a deeper net would take more memory.

        The number in the first half of the parts is compared with the number in all of them. If all of three parts are
        alive, nobody can tell if the number is a constant: None. One or two parts are what every rule needs. If no
        module of the net ran, nothing was seen: None.
        """
        if not self.alive:
            return None
        half = (self.parts + 1) // 2
        early, most = max(self.alive[:half]), max(self.alive)
        if most <= _ALWAYS or 2 * (most - early) <= self.parts - half:
            return False
        return True if most > _A_FEW else None


class Meter:
    """A meter that follows the storage of each activation from its creation to its release.

    It counts storages and not tensors: views share memory, and only the last owner's death frees it.

    Args:
        layers: the layers of the net; parameters do not count as activations.
        part: the part of each layer, by the layer's name.
        ignored: tensors that exist before the run and are not activations, such as samples and buffers.
        target: what the parts learn, which a rule may compute once for all of them; copies of it are ignored too.
    """

    def __init__(
        self, layers: Layers, part: Mapping[str, str], ignored: Iterable[Tensor], target: Tensor | None = None
    ) -> None:
        self.layers = layers
        self.part = part
        self._target = target
        self._ignored = {t.untyped_storage()._cdata for t in (*layers.parameters.values(), *ignored)}
        self._alive: dict[int, tuple[StorageWeakRef, int, str]] = {}  # by address: reference, bytes, layer
        self._layer = ""
        self._curve: list[tuple[str, int]] = []
        self._bytes_of_part = Counter[str]()  # all that the part ever allocated
        self._snapshots: list[tuple[str, Counter[str]]] = []  # the part at work, and bytes alive by part

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A context in which all modules that run are measured."""
        hooks = nn.modules.module
        handles = [hooks.register_module_forward_pre_hook(self._enter), hooks.register_module_forward_hook(self._leave)]
        try:
            # Module outputs alone would miss what functions keep for backward, such as the mask of a dropout.
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> ActivationMemory:
        """Return the measurements of the run."""
        # A part that ran twice counts by its first run: what the first pass of two leaves behind (the error of the
        # output) belongs to a later part and does not grow with the depth.
        place = {part: number for number, part in enumerate(dict.fromkeys(part for part, _ in self._snapshots))}
        alive, at_once = [0] * len(place), 0
        for working, sizes in self._snapshots:
            parts = [p for p, size in sizes.items() if size >= _SHARE_THAT_COUNTS * self._bytes_of_part[p]]
            at_once = max(at_once, len(parts))
            so_far = sum(place.get(p, 0) <= place[working] for p in parts)
            alive[place[working]] = max(alive[place[working]], so_far)
        return ActivationMemory(tuple(self._curve), self._bytes_of_part.total(), at_once, tuple(alive))

    def _enter(self, module: nn.Module, args: object) -> None:
        names = [name for name in self.layers.modules.get(module, ()) if name in self.part]
        if names:
            self._layer = names[0]
            self._curve.append((self._layer, 0))

    def _leave(self, module: nn.Module, args: object, out: object) -> None:
        if isinstance(out, Tensor) and self._curve:
            self._keep(out)
            self._take_snapshot()

    def _keep(self, tensor: Tensor) -> Tensor:
        plain = unwrapped(tensor)
        storage = plain.untyped_storage()
        if self._layer and storage._cdata not in self._ignored and self._is_new(storage._cdata) and self._counts(plain):
            self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), self._layer)  # type: ignore[no-untyped-call]
            self._bytes_of_part[self.part[self._layer]] += storage.nbytes()
        # The graph keeps what this hook returns. The tensor itself would point back to the graph: a cycle, which only
        # the garbage collector would free, so that memory would seem to grow for every rule.
        return tensor.detach()

    def _counts(self, tensor: Tensor) -> bool:
        target = self._target
        return target is None or tensor.shape != target.shape or not torch.equal(tensor.to(target), target)

    def _is_new(self, address: int) -> bool:
        # The allocator gives the address of a freed storage to a later one, so an address alone does not identify it.
        return address not in self._alive or bool(self._alive[address][0].expired())  # type: ignore[no-untyped-call]

    def _take_snapshot(self) -> None:
        for address in [address for address in self._alive if self._is_new(address)]:
            del self._alive[address]
        alive = list(self._alive.values())
        layer, most = self._curve[-1]
        self._curve[-1] = (layer, max(most, sum(size for _, size, _ in alive)))
        snapshot = Counter[str]()
        for _, size, layer in alive:
            snapshot[self.part[layer]] += size
        self._snapshots.append((self.part[self._layer], snapshot))
