"""How many bytes of activations are alive as the layers go by."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bpfree.lab.certify.layers import Layers, unwrapped

_LOCALLY = 3  # parts of which much may be alive at once: the one at work, its input, and the output with its error
_MUCH = 1 / 20  # of what a part ever had; less is a result and no activations


class Held(NamedTuple):
    """Activations of one call of `gradients`: outputs of modules, and what is kept for a way back.

    Attributes:
        curve: the most bytes alive until the next layer begins, for each layer as it ran, in order.
        total: bytes of all activations that there ever were.
        parts: the most parts of the net of which at least a twentieth is alive at once.
        of: parts that ran.
    """

    curve: tuple[tuple[str, int], ...]
    total: int
    parts: int
    of: int

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max((size for _, size in self.curve), default=0)

    @property
    def grows(self) -> bool | None:
        """Whether what is held grows with the number of parts; None if there are too few to tell."""
        return None if self.of <= _LOCALLY else self.parts > _LOCALLY


class Meter:
    """Follows the storages of activations from birth to death.

    Args:
        layers: of the net; its parameters are no activations.
        part: that of each layer.
        known: tensors that are there before, such as samples and buffers.
    """

    def __init__(self, layers: Layers, part: Mapping[str, str], known: Iterable[Tensor]) -> None:
        self.layers = layers
        self.part = part
        self._known = {t.untyped_storage()._cdata for t in (*layers.parameters.values(), *known)}
        self._born: dict[int, tuple[StorageWeakRef, int, str]] = {}  # with size and layer
        self._layer = ""
        self._curve: list[tuple[str, int]] = []
        self._ever = Counter[str]()  # bytes by part
        self._seen: list[Counter[str]] = []  # bytes alive by part, at each look

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A run."""
        hooks = nn.modules.module
        handles = [hooks.register_module_forward_pre_hook(self._enter), hooks.register_module_forward_hook(self._leave)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def held(self) -> Held:
        """What was found."""
        counts = [sum(size >= _MUCH * self._ever[part] for part, size in held.items()) for held in self._seen]
        return Held(tuple(self._curve), self._ever.total(), max(counts, default=0), len(self._ever))

    def _enter(self, module: nn.Module, args: object) -> None:
        names = [name for name in self.layers.modules.get(module, ()) if name in self.part]
        if names:
            self._layer = names[0]
            self._curve.append((self._layer, 0))

    def _leave(self, module: nn.Module, args: object, out: object) -> None:
        if isinstance(out, Tensor) and self._curve:
            self._keep(out)
            self._look()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = unwrapped(tensor).untyped_storage()
        if self._layer and storage._cdata not in self._known and self._is_new(storage._cdata):
            self._born[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), self._layer)  # type: ignore[no-untyped-call]
            self._ever[self.part[self._layer]] += storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    def _is_new(self, address: int) -> bool:
        return address not in self._born or bool(self._born[address][0].expired())  # type: ignore[no-untyped-call]

    def _look(self) -> None:
        for address in [address for address in self._born if self._is_new(address)]:
            del self._born[address]
        alive = list(self._born.values())
        layer, most = self._curve[-1]
        self._curve[-1] = (layer, max(most, sum(size for _, size, _ in alive)))
        held = Counter[str]()
        for _, size, layer in alive:
            held[self.part[layer]] += size
        self._seen.append(held)
