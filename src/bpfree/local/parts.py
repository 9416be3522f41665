"""The segments of a net as parts that several processes train: what each holds and costs, and how a process skips some.

A process runs its own segments only. Segments before them run on the meta device, which computes shapes and nothing
else; at the last tap before its own segments it goes on with the features that the process before it sent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, forward
from bpfree.local.cut import cut
from bpfree.local.segments import Segment, rehearsal
from bpfree.mesh.draws import DrawsOfEarlierParts


class SegmentTensors:
    """The tensors of each segment, and the operations of its forward pass.

    Args:
        net: the net.
        segments: its segments; the last is the output segment.
        x: a few samples [B, ...].

    Attributes:
        operations: floating-point operations of each segment for a sample.
        names: the names of the parameters and buffers of each segment, in the net.
    """

    def __init__(self, net: nn.Module, segments: Sequence[Segment], x: Inputs) -> None:
        self._net = net
        self._now = 0
        runs: dict[str, int] = {}
        totals: list[int] = []
        with ExitStack() as stack:

            def note(name: str) -> Callable[..., None]:
                def before(*_: Any) -> None:
                    runs.setdefault(name, self._now)

                return before

            for name, module in net.named_modules():
                stack.callback(module.register_forward_pre_hook(note(name)).remove)
            counter = FlopCounterMode(display=False)

            def visit(index: int, h: Tensor) -> None:
                self._now = index + 1
                totals.append(counter.get_total_flops())

            taps = [segment.name for segment in segments[:-1]]
            with rehearsal(net, x), torch.no_grad(), counter, cut(net, taps, visit):
                samples = len(forward(net, x))
            totals.append(counter.get_total_flops())
        before = [0, *totals]
        self.operations = [1 + (after - start) / samples for start, after in zip(before, totals, strict=False)]
        self.names: list[list[str]] = [[] for _ in segments]
        known = {name: index for index, segment in enumerate(segments) for name in segment.parameters}
        for name in dict.fromkeys(name for name, _ in _named_tensors(net)):
            self.names[known[name] if name in known else _where(name, runs)].append(name)

    def tensors(self, index: int) -> list[Tensor]:
        """Return the parameters and buffers of a segment."""
        return [getattr(*_place(self._net, name)) for name in self.names[index]]


def _named_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _where(name: str, runs: dict[str, int]) -> int:
    """The segment in which the module of a tensor runs, or the module around it."""
    module = name.rpartition(".")[0]
    while module and module not in runs:
        module = module.rpartition(".")[0]
    return runs.get(module, 0)


def _place(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, own = name.rpartition(".")
    return net.get_submodule(module), own


class EarlierSegments:
    """Segments that another process trains, which a process runs on the meta device.

    Args:
        net: the net.
        names: the parameters and buffers of those segments.

    Attributes:
        are_over: True from where the pass goes on with real features; the user of `skipped` sets it.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self._net = net
        self._hidden: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        for name in names:
            module, own = _place(net, name)
            tensor = getattr(module, own)
            meta: Tensor = torch.empty_like(tensor, device="meta")
            if isinstance(tensor, nn.Parameter):
                meta = nn.Parameter(meta, requires_grad=False)
            self._hidden.append((module, own, tensor, meta))
        self._draws = True  # until a pass has shown that these segments do not draw
        self.are_over = False

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """While active, forward passes of the net compute only shapes in these segments.

        Raises:
            UserError: an operation in these segments needs values.
        """
        self.are_over = False
        handle = self._net.register_forward_pre_hook(_on_meta, with_kwargs=True)
        draws = DrawsOfEarlierParts() if self._draws else None
        try:
            for module, own, _, meta in self._hidden:
                _set(module, own, meta)
            with ExitStack() as stack:
                if draws is not None:
                    stack.enter_context(draws)
                yield
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if self.are_over or isinstance(error, UserError):
                raise
            raise UserError(
                "mesh: found 'blocks', but this net cannot skip the segments that another process trains, since its "
                f"forward needs their values ({' '.join(str(error).split())[:200]}). Use train.mesh=data"
            ) from error
        finally:
            handle.remove()
            for module, own, tensor, _ in self._hidden:
                _set(module, own, tensor)
            if draws is not None:
                self._draws = draws.drew


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if type(module).__setattr__ is not nn.Module.__setattr__:  # recurrent layers keep a list of their weights
        setattr(module, name, tensor)
    elif name in module._parameters:
        module._parameters[name] = tensor  # type: ignore[assignment]
    else:
        module._buffers[name] = tensor


def _on_meta(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    def moved(value: Any) -> Any:
        return apply(value, lambda x: x.to("meta")) if isinstance(value, Tensor | tuple | dict) else value

    return tuple(moved(value) for value in args), {name: moved(value) for name, value in kwargs.items()}
