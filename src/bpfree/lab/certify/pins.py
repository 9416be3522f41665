"""Pins that hold the outputs of modules at recorded values, while weights change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bpfree.lab.certify.layers import is_transformed

MOST_BYTES = 1 << 30
"""The most bytes of recorded outputs: 1 GiB."""

_make_dual = forward_ad.make_dual  # the original; a watch replaces the name in the module
_unpack_dual = forward_ad.unpack_dual


class Pins:
    """Pins that hold the output of every module at its value in an earlier run.

    The values of the forward pass are then those of the earlier run, while the backward pass still goes through the
    graph of the current one. The first run records, later runs replay. Within `torch.func.vmap` the values of all
    members are held. Within other transforms of `torch.func`, modules are left alone: their outputs are wrapped for one
    transform, and a recorded wrapper would be invalid in the next.

    Attributes:
        full: True if the outputs take more than `MOST_BYTES`, so that not all could be recorded. A large population on
            a large net does that.
        left_alone: True if the output of a module could not be recorded, for this or another reason, or could not be
            held, because modules were called in another order or with other shapes than in the recorded run.
        size: bytes of all recorded outputs.
    """

    def __init__(self) -> None:
        self.full = False
        self.left_alone = False
        self.size = 0
        self._values: list[tuple[Tensor, Tensor | None]] = []  # (value, tangent) in the order of calls
        self._next = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context for the run whose values are recorded."""
        with _on_every_forward(self._record):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """A context for a run that gets the recorded values."""
        self._next = 0
        with _on_every_forward(self._replay):
            yield

    def _record(self, module: nn.Module, args: object, out: object) -> None:
        value = _value(out) if isinstance(out, Tensor) and not self.full else None
        if value is None:
            self.left_alone = self.left_alone or isinstance(out, Tensor)
            return
        self.size += value.numel() * value.itemsize
        self.full = self.size > MOST_BYTES
        primal, tangent = _unpack_dual(value)  # type: ignore[no-untyped-call]
        self._values.append((primal.detach().clone(), None if tangent is None else tangent.detach().clone()))

    def _replay(self, module: nn.Module, args: object, out: object) -> Tensor | None:
        value = _value(out) if isinstance(out, Tensor) else None
        if value is None or not self._values:
            return None
        assert isinstance(out, Tensor)
        # Rules call modules in the same order in every run.
        primal, tangent = self._values[min(self._next, len(self._values) - 1)]
        self._next += 1
        if self._next > len(self._values) or primal.shape != value.shape or primal.dtype != value.dtype:
            self.left_alone = True
            return None
        if value is not out:
            functorch = torch._C._functorch
            member, level = functorch.maybe_get_bdim(out), functorch.maybe_get_level(out)
            return functorch._add_batch_dim(primal.clone(), member, level)
        if tangent is not None:
            return _make_dual(primal.clone(), tangent.clone())  # type: ignore[no-any-return, no-untyped-call]
        if not out.requires_grad:
            return primal.clone()
        pinned: Tensor = _Pin.apply(out, primal)  # type: ignore[no-untyped-call]
        return pinned


def _value(out: Tensor) -> Tensor | None:
    """Return the tensor to record for an output; None if it is inside of a transform that cannot be replayed.

    Within vmap it is the tensor of all members. The output itself is a wrapper of it.
    """
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(out):
        return None if out.requires_grad and is_transformed() else out
    inner = functorch.get_unwrapped(out)
    plain = functorch.is_batchedtensor(out) and not functorch.is_functorch_wrapped_tensor(inner)
    return inner if plain and not inner.requires_grad else None


class _Pin(torch.autograd.Function):
    """A function that returns a recorded value forwards and is the identity backwards.

    Replacing the value without it would cut the graph, and no way back would be left to observe.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@contextmanager
def _on_every_forward(hook: Callable[..., Any]) -> Iterator[None]:
    """A context in which a hook runs after every module's forward pass.

    torch runs global hooks before a module's own hooks. So the hooks by which a rule cuts the net see the pinned value.
    """
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
