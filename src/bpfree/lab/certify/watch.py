"""What is watched, and tampered with, while a rule writes its gradients.

Nothing here asks the rule. All of torch's ways of differentiating end in one function of its autograd (`backward`,
`grad`, `torch.func.grad`, `vjp`) or begin by marking a tensor as dual (`jvp`, forward mode), and all modules run their
hooks, whoever calls them: also copies of the net, and calls with other parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bpfree.lab.certify.layers import Layers, is_transformed
from bpfree.lab.certify.walk import Reach, Walk

_MOST_BYTES = 1 << 30
_make_dual = forward_ad.make_dual
_unpack_dual = forward_ad.unpack_dual


class Objectives:
    """Sees every objective that is differentiated, in order; an objective within another's backward is part of it.

    Args:
        layers: whose graph is walked; None for no walk.
        samples: in the batch.
        scaled: number of the objective whose derivative is to be twice as large.
        during: surrounds every backward pass.
    """

    def __init__(
        self,
        layers: Layers | None = None,
        samples: int = 0,
        *,
        scaled: int | None = None,
        during: Callable[[], Any] | None = None,
    ) -> None:
        self.layers = layers
        self.samples = samples
        self.scaled = scaled
        self.during = during
        self.count = 0
        self.found: list[Reach] = []
        self.forwards: list[dict[str, None]] = []  # parameters marked as dual, by objective
        self.kinds: list[str] = []
        self._depth = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, torch's own functions are replaced."""
        engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
        enter = forward_ad.enter_dual_level

        def run(outs: Sequence[Tensor], grads: Sequence[Tensor | None], *rest: Any, **options: Any) -> Any:
            return self._backward(engine, outs, grads, *rest, **options)

        def level() -> int:
            self._begin("forward")
            return enter()  # type: ignore[no-any-return, no-untyped-call]

        with (
            mock.patch.object(torch.autograd, "_engine_run_backward", run),
            mock.patch.object(forward_ad, "enter_dual_level", level),
            mock.patch.object(forward_ad, "make_dual", self._dual),
        ):
            yield

    def _begin(self, kind: str) -> bool:
        """Whether this objective is the one to be scaled."""
        if self._depth == 0:
            self.kinds.append(kind)
            self.found.append(Reach(frozenset(), frozenset(), False, 0, 0))
            self.forwards.append({})
            self.count += 1
        return self.count - 1 == self.scaled and self._depth == 0

    def _backward(
        self,
        engine: Callable[..., Any],
        outs: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *rest: Any,
        **options: Any,
    ) -> Any:
        scaled = self._begin("backward")
        if self.layers is not None:
            reach = Walk(outs, self.layers, self.samples, rest[2]).reach()
            self.found[-1] = _joined(self.found[-1], reach) if self._depth else reach
        if scaled:
            grads = tuple(2 * (torch.ones_like(o) if g is None else g) for o, g in zip(outs, grads, strict=True))
        self._depth += 1
        try:
            if self.during is None:
                return engine(outs, grads, *rest, **options)
            with self.during():
                return engine(outs, grads, *rest, **options)
        finally:
            self._depth -= 1

    def _dual(self, tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
        if self.forwards and self.layers is not None and (name := self.layers.name_of(tensor)) is not None:
            self.forwards[-1][name] = None
        if self.forwards and self.count - 1 == self.scaled:
            tangent = 2 * tangent
        return _make_dual(tensor, tangent, level=level)  # type: ignore[no-any-return, no-untyped-call]


def _joined(outer: Reach, inner: Reach) -> Reach:
    """An objective and one within its backward pass, as by checkpointing: their chains are one behind the other."""
    return Reach(
        outer.through | inner.through,
        outer.ends | inner.ends,
        outer.signal and inner.signal,
        outer.chain + inner.chain,
        outer.heads + inner.heads,
    )


@contextmanager
def retained() -> Iterator[None]:
    """Within it, a backward pass leaves its graph for others that go through the same nodes."""
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(outs: Any, grads: Any, keep: bool, *rest: Any, **options: Any) -> Any:
        return engine(outs, grads, True, *rest, **options)

    with mock.patch.object(torch.autograd, "_engine_run_backward", run):
        yield


class Pins:
    """Holds what every module gives at the values of another run, while the way back stays that of this one.

    A first run records, later ones replay. Modules within `torch.func` transforms are left alone.
    """

    def __init__(self) -> None:
        self.full = False  # a large population on a large net gives more than can be kept
        self._bytes = 0
        self._values: list[tuple[Tensor, Tensor | None]] = []
        self._next = 0
        self._replays = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The run whose values count."""
        with _on_forward(self._record):
            yield
        self._replays = True

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """A run with the recorded values."""
        self._next = 0
        with _on_forward(self._replay):
            yield

    def _record(self, module: nn.Module, args: object, out: object) -> None:
        if isinstance(out, Tensor) and not is_transformed() and not self.full:
            self._bytes += out.numel() * out.itemsize
            self.full = self._bytes > _MOST_BYTES
            primal, tangent = _unpack_dual(out)  # type: ignore[no-untyped-call]
            self._values.append((primal.detach().clone(), None if tangent is None else tangent.detach().clone()))

    def _replay(self, module: nn.Module, args: object, out: object) -> Tensor | None:
        if not isinstance(out, Tensor) or is_transformed() or self._next == len(self._values):
            return None
        primal, tangent = self._values[self._next]
        self._next += 1
        if primal.shape != out.shape or primal.dtype != out.dtype:
            return None
        if tangent is not None:
            return _make_dual(primal.clone(), tangent.clone())  # type: ignore[no-any-return, no-untyped-call]
        if not out.requires_grad:
            return primal.clone()
        pinned: Tensor = _Pin.apply(out, primal)  # type: ignore[no-untyped-call]
        return pinned


class _Pin(torch.autograd.Function):
    """The given value, with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@contextmanager
def _on_forward(hook: Callable[..., Any]) -> Iterator[None]:
    """On every module there is, before its own hooks."""
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
