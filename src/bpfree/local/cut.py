"""Cut any net into segments, without changing it.

A *tap* is the name of a submodule; the graph is cut behind this submodule. Taps t_1..t_k make k+1 segments: segment i
ends at the output of t_i. The last segment is called "output" and ends at the output of the net. Plain forward hooks
make the cut by detaching outputs, so the net is not wrapped and no layer is replaced. Backward hooks of modules are not
used, since they break with in-place activations. While a compiled net is cut it runs as it was written, since compiled
code does not call hooks that were added later.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import features_of, with_features
from bpfree.nets.acceptance import eager

Taps = Sequence[str] | int | Literal["auto"] | None
"""The places where a rule should cut: names of submodules, or how many; "auto" and None let the rule choose."""
Visit = Callable[[int, Tensor], object]
"""A function that is called with each tapped output. If it returns a tensor, this goes on in place of the output."""


@contextmanager
def cut(
    net: nn.Module, taps: Sequence[str], visit: Visit, again: Visit | None = None, *, attached: bool = False
) -> Iterator[None]:
    """While active, a forward pass hands each tapped output to `visit(index, h)` and goes on with `h` detached.

    What `visit` leaves of the segment's graph is freed as the pass goes on: memory is that of one segment. Activation
    checkpointing may run a tapped module a second time, in a backward pass. `visit` is not called then. Modules that
    `visit` itself runs do not belong to the pass, so they are not cut.

    Args:
        net: any module; untouched afterwards.
        taps: names of submodules; `index` counts in this order.
        visit: called with h [B, ...], which is attached to its own segment only. A tensor that it returns goes on in
            place of h.
        again: called in place of `visit` when checkpointing runs the module again; needed only if `visit` returns
            something else than h.
        attached: True to go on with h and its graph. Then nothing is cut, and `visit` only looks at the pass.

    Raises:
        UserError: a tap gives no tensor, did not run, or ran twice in the forward pass.
    """
    ran = [False] * len(taps)
    visiting = False

    def hook(index: int) -> Callable[[nn.Module, object, object], Any]:
        def detach(module: nn.Module, args: object, out: object) -> Any:
            nonlocal visiting
            # A visit may start a backward pass, in which checkpointing runs tapped modules again. Then `visiting`
            # is True as well, and the second run must be detached like the first.
            is_again = _in_backward()
            if visiting and not is_again:
                return None
            h = features_of(out)
            if h is None:
                raise UserError(
                    f"tap '{taps[index]}' gives {type(out).__name__}, allowed: a module whose output is one tensor, or "
                    "a tuple that begins with it. Tap a module inside or behind it."
                )
            if ran[index] and not is_again:
                raise UserError(_REPEATED.format(tap=taps[index], times=2, cure="Give each place a module of its own."))
            ran[index] |= not is_again
            before, visiting = visiting, True
            try:
                with _apart_from_checkpointing():
                    instead = again and again(index, h) if is_again else visit(index, h)
            finally:
                visiting = before
            passed = instead if isinstance(instead, Tensor) else h
            return with_features(out, passed if attached else passed.detach())

        return detach

    handles = [net.get_submodule(name).register_forward_hook(hook(i)) for i, name in enumerate(taps)]
    try:
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()
    if not all(ran):
        cure = "Remove it, or tap a module that runs in every pass."
        raise UserError(_REPEATED.format(tap=taps[ran.index(False)], times=0, cure=cure))


_REPEATED = "tap '{tap}' ran {times} times in one forward pass, allowed: once. {cure}"


def _in_backward() -> bool:
    """True if autograd runs a backward pass now, in which activation checkpointing runs modules again."""
    return bool(torch._C._current_graph_task_id() != -1)


def _apart_from_checkpointing() -> AbstractContextManager[Any]:
    """Hide the tensors that autograd saves inside the context from a running region of activation checkpointing.

    Checkpointing counts the tensors that a region saves, and compares with the count of the second run. The visit does
    not happen in the second run, so its tensors must not be counted in the first.
    """
    if not _in_checkpoint():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)


def _in_checkpoint() -> bool:
    """True if a region of activation checkpointing runs now."""
    if (top := getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)) is not None:
        return (hooks := top(True)) is not None and hooks[0].__module__ == "torch.utils.checkpoint"
    frame = inspect.currentframe()  # torch 2.6 cannot tell which hooks are active, so look for its file on the stack
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back
    return frame is not None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
