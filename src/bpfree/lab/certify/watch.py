"""Instruments that watch a rule while it writes its gradients, and change one thing at a time.

They do not ask the rule. Every way to differentiate in torch either ends in one function of autograd (`backward`,
`grad`, `torch.func.grad`, `vjp`) or begins by marking a tensor as dual (`jvp`, forward mode). Every module runs its
hooks, whoever calls it: copies of the net and calls with other parameters too. Whoever wants to hide has to compute by
hand, and the experiments of `measure` find that as well.
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

_MOST_BYTES = 1 << 30  # of recorded outputs: 1 GiB
_make_dual = forward_ad.make_dual  # the originals; `Objectives` replaces the names in the module
_unpack_dual = forward_ad.unpack_dual


class Objectives:
    """A watch that sees every objective that is differentiated, in order, and can double the derivative of one.

    An objective that is differentiated during another's backward pass (checkpointing does so) counts as part of it.

    Args:
        layers: the layers of net and rule. With None no graph is walked.
        samples: number of samples in the batch.
        doubled: number of the objective whose derivative is doubled; None for none.
        during: makes a context in which every backward pass runs.

    Attributes:
        kinds: "backward" or "forward", by objective.
        reaches: the layers that each objective's graph reaches; empty for forward mode, which makes no graph.
        duals: names of the parameters that were marked as dual, by objective.
    """

    def __init__(
        self,
        layers: Layers | None = None,
        samples: int = 0,
        *,
        doubled: int | None = None,
        during: Callable[[], Any] | None = None,
    ) -> None:
        self.layers = layers
        self.samples = samples
        self.doubled = doubled
        self.during = during
        self.kinds: list[str] = []
        self.reaches: list[Reach] = []
        self.duals: list[dict[str, None]] = []
        self._depth = 0  # of backward passes within backward passes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which torch's own functions report to this watch."""
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
        """Note the beginning of an objective. Return True if its derivative is the one to double."""
        if self._depth == 0:
            self.kinds.append(kind)
            self.reaches.append(Reach(frozenset(), frozenset(), False, 0, 0))
            self.duals.append({})
        # Within a backward pass the doubled derivative arrives by itself; doubling here again would make it fourfold.
        return len(self.kinds) - 1 == self.doubled and self._depth == 0

    def _backward(
        self,
        engine: Callable[..., Any],
        outs: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *rest: Any,  # keep_graph, create_graph, inputs, ...
        **options: Any,
    ) -> Any:
        doubled = self._begin("backward")
        if self.layers is not None:  # before the pass, which frees what the nodes keep
            reach = Walk(outs, self.layers, self.samples, rest[2]).reach()
            self.reaches[-1] = _joined(self.reaches[-1], reach) if self._depth else reach
        if doubled:  # a factor of two is exact in floating point, so rounding changes nothing else
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
        if self.duals and self.layers is not None and (name := self.layers.name_of(tensor)) is not None:
            self.duals[-1][name] = None
        if self.duals and len(self.kinds) - 1 == self.doubled:  # the derivative is linear in the tangents
            tangent = 2 * tangent
        return _make_dual(tensor, tangent, level=level)  # type: ignore[no-any-return, no-untyped-call]


def _joined(outer: Reach, inner: Reach) -> Reach:
    """Return the reach of an objective together with one that is differentiated within its backward pass.

    The inner one continues where the outer one stopped, at the checkpoint, so the lengths of the chains add up. The
    activations at the checkpoint are then no end of the derivative, hence `and`.
    """
    return Reach(
        outer.through | inner.through,
        outer.ends | inner.ends,
        outer.signal and inner.signal,
        outer.chain + inner.chain,
        outer.heads + inner.heads,
    )


@contextmanager
def retained() -> Iterator[None]:
    """A context in which backward passes keep their graph, for objectives that share nodes."""
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(outs: Any, grads: Any, keep: bool, *rest: Any, **options: Any) -> Any:
        return engine(outs, grads, True, *rest, **options)

    with mock.patch.object(torch.autograd, "_engine_run_backward", run):
        yield


class Pins:
    """Pins that hold the output of every module at its value in an earlier run.

    The values of the forward pass are then those of the earlier run, while the backward pass still goes through the
    graph of the current one. The first run records, later runs replay. Modules within transforms of `torch.func` are
    left alone: their outputs are wrapped for one transform, and a recorded wrapper would be invalid in the next.

    Attributes:
        full: True if the outputs take more than 1 GiB, so that not all could be recorded. A large population on a large
            net does that.
    """

    def __init__(self) -> None:
        self.full = False
        self._bytes = 0
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
        if isinstance(out, Tensor) and not is_transformed() and not self.full:
            self._bytes += out.numel() * out.itemsize
            self.full = self._bytes > _MOST_BYTES
            primal, tangent = _unpack_dual(out)  # type: ignore[no-untyped-call]
            self._values.append((primal.detach().clone(), None if tangent is None else tangent.detach().clone()))

    def _replay(self, module: nn.Module, args: object, out: object) -> Tensor | None:
        if not isinstance(out, Tensor) or is_transformed() or self._next == len(self._values):
            return None
        primal, tangent = self._values[self._next]  # rules call modules in the same order in every run
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
