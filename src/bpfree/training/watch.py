"""A context that sees what a step does, and says if a captured step would do the same each time."""

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Their result depends on values, or has a size that does, so the host waits for the device.
_READS = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
_FEW = 64  # numbers whose values are compared, too
_COPIES = {aten._to_copy, aten.copy_}


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations inside the block, the memory that they find there, and what the host waits for.

    Args:
        device: the device of the training.

    Attributes:
        reason: the first thing that a captured step cannot do; None if there is none.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.reason: str | None = None
        self._operations: list[tuple[Any, ...]] = []
        self._made: set[int] = set()  # addresses of memory that the block itself has filled
        self._found: dict[int, str] = {}  # by address, their shapes

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch."""
        options = kwargs or {}
        given = tree_leaves((args, options))
        tensors = [t for t in given if isinstance(t, Tensor)]
        fresh = func.overloadpacket is aten.lift_fresh  # torch.tensor(...) has made its argument
        if self.reason is None and (what := self._forbidden(func, args, options)):
            self.reason = f"{what} ({_place()})"
        if fresh and given[0].numel() <= _FEW:
            self._operations.append((func, repr(given[0].tolist())))
        else:
            self._operations.append((func, *(_plain(value) for value in given)))
            if not func.is_view:  # a view reads nothing
                self._found |= {at: str(list(t.shape)) for t in tensors if (at := address(t)) not in self._made}
        out = func(*args, **options)
        new = {address(t) for t in tree_leaves(out) if isinstance(t, Tensor)} - self._found.keys()
        # Some operations return a view or a copy.
        self._made |= new - {address(t) for t in tensors} if func.is_view and not fresh else new
        return out

    def difference(self, other: "Watch") -> str | None:
        """Return how another step differed from this one; None if a captured step can stand for both.

        Args:
            other: of the other step.
        """
        for mine, theirs in zip(self._operations, other._operations, strict=False):
            if mine != theirs:
                a, b = next(((a, b) for a, b in zip(mine, theirs, strict=False) if a != b), (mine[0], theirs[0]))
                return f"two steps were not the same: in {mine[0]} one had {a}, and the other {b}"
        if len(self._operations) != len(other._operations):
            return "two steps were not the same: one ran more operations than the other"
        if new := other._found.keys() - self._found.keys():
            return (
                f"a step reads a tensor of shape {other._found[new.pop()]} that is another one in each step. Keep it, "
                "and write into it"
            )
        return None

    def _forbidden(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> str | None:
        packet = func.overloadpacket
        here = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.device.type == self._device.type]
        if packet in _READS and here:
            return "a step reads a value back to the host"
        if packet in (aten.index, aten.index_put_, aten.index_put) and self._selects(args):
            return "a step selects elements by a mask, and the host must know how many"
        if packet is aten.lift_fresh and here and self._device.type != "cpu":
            return "a step copies numbers from the host to the device"
        if packet in _COPIES:
            to = args[0].device if packet is aten.copy_ else options.get("device") or args[0].device
            source = args[1] if packet is aten.copy_ else args[0]
            is_number = packet is aten.copy_ and source.device.type == "cpu" and source.dim() == 0
            if torch.device(to).type != source.device.type and not is_number:
                return "a step copies between the host and the device"
        return None

    def _selects(self, args: Sequence[Any]) -> bool:
        masks = [t for t in args[1] if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)]
        one_value = len(args) > 2 and args[2].numel() == 1 and len(args[1]) == 1  # torch fills without counting
        return bool(masks) and not one_value


def _plain(value: Any) -> Any:
    """Return what of an argument must be the same in each step; NaN equals itself."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, int | str | torch.dtype) else repr(value) if isinstance(value, float) else None


def address(t: Tensor) -> int:
    """Return where a tensor lies in memory; 0 if it has none, as the zeros of forward-mode derivatives."""
    try:
        return t.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _place() -> str:
    """Return the innermost line that is not torch's, such as "shaping.py:42"."""
    inside = ("/torch/", __file__)
    frames = [f for f in traceback.extract_stack() if not any(part in f.filename for part in inside)]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "in a backward pass"
