"""Random numbers that a net draws in `forward` for the rows of one process, as if it ran the whole batch."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree.mesh.share import Share


class RandomOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which `random` runs torch's random operations, unless they take their numbers from a generator.

    Attributes:
        drew: True if a random operation ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch."""
        options = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or options.get("generator") is not None:
            return func(*args, **options)
        return self.random(func, args, options)

    @abstractmethod
    def random(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Run one random operation of torch."""


class DrawsForWholeBatch(RandomOperations):  # type: ignore[no-untyped-call]
    """A context in which a net's random operations draw for the whole batch, and keep the rows of this process.

    So a dropout mask is that of one process with the whole batch. It is for operations that fill a tensor in place, as
    dropout on a CPU, or draw in the shape of a tensor. A tensor whose first dimension does not have the rows of the
    samples is drawn as it is, which is the same in all processes.

    Args:
        share: the rows of this process.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    def random(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Run one random operation of torch for the whole batch."""
        self.drew = True
        x = args[0] if args and isinstance(args[0], Tensor) else None
        total = None if x is None or not x.dim() else self._share.widened(len(x))
        if x is None or total is None:
            return func(*args, **options)
        if func._schema.name.endswith("_"):  # in place
            return x.copy_(self._share.narrowed(func(_empty(total, x), *args[1:], **options)))
        if func._schema.name.endswith("_like"):
            return self._share.narrowed(func(_empty(total, x), *args[1:], **options)).contiguous()
        return func(*args, **options)


class DrawsOfEarlierParts(RandomOperations):  # type: ignore[no-untyped-call]
    """A context in which parts of a net that other processes train still use up their random numbers.

    Those parts run on the meta device, where nothing is drawn, and the parts behind them must find torch's generator
    where one process would have it. `drew` is about operations on the meta device.
    """

    def random(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Run one random operation of torch; on the meta device, draw and forget its numbers."""
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is not None and x.is_meta:
            self.drew = True
            func(torch.empty_like(x, device="cpu"), *args[1:], **options)
        return func(*args, **options)


def _empty(rows: int, like: Tensor) -> Tensor:
    """An empty tensor with more rows, in the memory order of a tensor: numbers are drawn in that order."""
    last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=order)
