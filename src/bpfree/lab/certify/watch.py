"""Instruments that watch a rule while it writes its gradients, and change one thing at a time.

They do not ask the rule. Every way to differentiate in torch either ends in the engine of autograd (`backward`,
`grad`, `torch.func.grad`, `vjp`) or begins by marking a tensor as dual (`jvp`, forward mode). A rule can avoid both: it
can compute by hand, or call the engine by a name that it kept from before. Then there is no objective to see, and the
experiments on its gradients (`influences`) find what they depend on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import Variable, forward_ad

from bpfree.lab.certify.layers import Layers
from bpfree.lab.certify.walk import Reach, Walk

_make_dual = forward_ad.make_dual  # the original; `Objectives` replaces the name in the module


class Objectives:
    """A watch that sees every objective that is differentiated, in order, and can scale the derivative of one.

    An objective that is differentiated during another's backward pass (checkpointing does so) counts as part of it.

    Args:
        layers: the layers of net and rule. With None no graph is walked.
        samples: number of samples in the batch.
        scaled: number of the objective whose derivative is multiplied by `factor`; None for none.
        factor: a power of two, which is exact in floating point, so that rounding changes nothing else.
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
        scaled: int | None = None,
        factor: float = 2.0,
        during: Callable[[], Any] | None = None,
    ) -> None:
        self.layers = layers
        self.samples = samples
        self.scaled, self.factor = scaled, factor
        self.during = during
        self.kinds: list[str] = []
        self.reaches: list[Reach] = []
        self.duals: list[dict[str, None]] = []
        self._depth = 0  # of backward passes within backward passes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which torch's own functions report to this watch."""
        enter = forward_ad.enter_dual_level

        def level() -> int:
            self._begin("forward")
            return enter()  # type: ignore[no-any-return, no-untyped-call]

        with (
            _engine_replaced(self._backward),
            mock.patch.object(forward_ad, "enter_dual_level", level),
            mock.patch.object(forward_ad, "make_dual", self._dual),
        ):
            yield

    def _begin(self, kind: str) -> bool:
        """Note the beginning of an objective. Return True if its derivative is the one to scale."""
        if self._depth == 0:
            self.kinds.append(kind)
            self.reaches.append(Reach(frozenset(), frozenset(), False, 0, 0))
            self.duals.append({})
        # Within a backward pass the scaled derivative arrives by itself; it must not be scaled twice.
        return len(self.kinds) - 1 == self.scaled and self._depth == 0

    def _backward(
        self,
        run: Callable[..., Any],
        outs: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        keep_graph: bool = False,
        create_graph: bool = False,
        inputs: Sequence[Tensor] = (),
        *rest: Any,
        **options: Any,
    ) -> Any:
        scaled = self._begin("backward")
        if self.layers is not None:  # before the pass, which frees what the nodes keep
            reach = Walk(outs, self.layers, self.samples, inputs).reach()
            self.reaches[-1] = _joined(self.reaches[-1], reach) if self._depth else reach
        if scaled:
            ones = (torch.ones_like(o) if g is None else g for o, g in zip(outs, grads, strict=True))
            grads = tuple(self.factor * each for each in ones)
        self._depth += 1
        try:
            with nullcontext() if self.during is None else self.during():
                return run(outs, grads, keep_graph, create_graph, inputs, *rest, **options)
        finally:
            self._depth -= 1

    def _dual(self, tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
        if self.duals and self.layers is not None and (name := self.layers.name_of(tensor)) is not None:
            self.duals[-1][name] = None
        if self.duals and len(self.kinds) - 1 == self.scaled:  # the derivative is linear in the tangents
            tangent = self.factor * tangent
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

    def backward(run: Callable[..., Any], outs: Any, grads: Any, keep_graph: bool, *rest: Any, **options: Any) -> Any:
        return run(outs, grads, True, *rest, **options)

    with _engine_replaced(backward):
        yield


class _Engine:
    """The engine of autograd, with another method in the place of `run_backward`.

    Args:
        engine: the engine, which gets all other calls.
        backward: called with `run_backward` of the engine and with its arguments.
    """

    def __init__(self, engine: Any, backward: Callable[..., Any]) -> None:
        self._engine, self._backward = engine, backward

    def run_backward(self, *args: Any, **options: Any) -> Any:
        return self._backward(self._engine.run_backward, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@contextmanager
def _engine_replaced(backward: Callable[..., Any]) -> Iterator[None]:
    """A context in which all of torch's functions that differentiate backwards call `backward`."""
    # All of them look the engine up in this attribute, `torch.autograd.graph._engine_run_backward` too.
    engine = _Engine(Variable._execution_engine, backward)
    with mock.patch.object(Variable, "_execution_engine", engine):
        yield
