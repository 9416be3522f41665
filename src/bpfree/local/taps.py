"""A table of the places where a net can be cut, for people to look at: `bpfree.taps`."""

from collections import Counter
from collections.abc import Callable
from io import StringIO
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, UntypedStorage, nn

from bpfree.errors import UserError
from bpfree.grad import first_trainable
from bpfree.inputs import Inputs, apply, count, features_of, forward, from_arrays, tensors_of
from bpfree.local.autotaps import find_segments
from bpfree.local.segments import OUTPUT, owners, reached_parameters, rehearsal
from bpfree.nets.acceptance import eager, materialize, refuse_lazy, refuse_meta
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise

_WIDTH = 160
_FEW = 16  # samples at most
_SIDES = (8, 28, 32, 64, 96, 224)  # of images


class Tap(NamedTuple):
    """A place where a net can be cut, and the piece of the net between the tap before it and this one.

    Attributes:
        name: the name of the submodule, or "output" for the end of the net.
        shape: the shape of its output for one sample.
        parameters: the number of parameters of the piece.
        activation_bytes: bytes that its backward pass keeps for one sample. Several pieces keep their sum.
        auto: True if a rule cuts the net here when the user gives no taps; dfa and pepita cut behind a dropout that
            follows.
        refused: the reason why a single cut here does not work; None if it works.
    """

    name: str
    shape: torch.Size
    parameters: int
    activation_bytes: int
    auto: bool
    refused: str | None


class TapList(list[Tap]):
    """A list of taps in the order in which they run. Printed, it is a table, which shortens long reasons."""

    def __rich__(self) -> Table:
        """Return the table, with a row for each tap."""
        table = Table(box=None)
        for heading in ("tap", "shape", "parameters", "bytes kept", "auto", "cut"):
            table.add_column(heading, justify="left" if heading in ("tap", "cut") else "right")
        for tap in self:
            shape, numbers = "x".join(map(str, tap.shape)), (f"{tap.parameters:,}", f"{tap.activation_bytes:,}")
            verdict = "sound" if tap.refused is None else escape(shorten(f"no: {tap.refused}", 80))
            table.add_row(tap.name, shape, *numbers, "*" if tap.auto else "", verdict)
        return table

    def __repr__(self) -> str:
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def taps(net: nn.Module, x: Any = None) -> TapList:
    """List the places where a net can be cut: every submodule that runs once in a forward pass and gives one tensor.

    Cuts that are sound alone are sound together. The list takes a forward pass for each submodule.

    Args:
        net: the net, as it will be trained; buffers and random state come out as they went in.
        x: [B, ...], a few samples as the net takes them: an array or a tensor, or a tuple or a dict of those. Of
            many samples the first 16 are used. Default: zeros as the first layer takes them; for a convolution, images
            of the smallest usual size that the net takes.

    Returns:
        The taps in the order in which they run, and the end of the net as "output".

    Raises:
        UserError: no x was given, and none of the usual shapes goes through the net; the net has no values.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> print(taps(net))
         tap     shape  parameters  bytes kept  auto  cut
         0           8          40           0        sound
         1           8           0          32     *  sound
         output      2          18           0        no: the end of the net, which has the task's loss
    """
    refuse_meta(net)
    x = _usual_input(net) if x is None else _samples(net, x)
    materialize(net, x)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    auto = _automatic(net, x)
    tap_list, counted, kept = TapList(), set[str](), 0
    for run in _forward(net, x):
        parameters = sum(sizes[name] for name in run.reached if name not in counted)
        size = (run.kept - kept) // count(x)
        refused = _refusal(net, run.name, x) if run.name else "the end of the net, which has the task's loss"
        tap_list.append(Tap(run.name or OUTPUT, run.h.shape[1:], parameters, size, run.name in auto, refused))
        counted, kept = counted.union(run.reached), run.kept
    return tap_list


def _samples(net: nn.Module, x: Any) -> Inputs:
    """The first samples of the user's x, as tensors."""
    tokens = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in net.modules())
    return apply(from_arrays(x, first_trainable(net), tokens=tokens), lambda t: t[:_FEW])


def _automatic(net: nn.Module, x: Inputs) -> tuple[str, ...]:
    """The taps that a rule finds by itself; none if it cannot cut the net."""
    try:
        return tuple(segment.name for segment in find_segments(net, x).segments[:-1])
    except UserError:
        return ()


def _usual_input(net: nn.Module) -> Tensor:
    """Two samples of zeros that go through the net."""
    refuse_lazy(net, "Give taps a few samples x")
    like = first_trainable(net)
    for shape in _usual_shapes(net):
        x = like.new_zeros(2, *shape)
        try:
            with torch.no_grad(), unchanged_buffers(net), Noise().global_rng(x.device):
                forward(net, x)
        except (RuntimeError, ValueError, IndexError, TypeError):
            continue
        return x
    raise UserError(
        f"x: found None, and the input of {type(net).__name__} cannot be guessed, allowed: a few samples. Give x"
    )


def _usual_shapes(net: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of one sample that the first layer with weights might take."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            return [(module.in_features,)]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            rank = len(module.kernel_size)
            return [(module.in_channels, *[side] * rank) for side in _SIDES]
    return []


class _Run(NamedTuple):
    name: str
    h: Tensor
    reached: tuple[str, ...]  # parameters from which h was computed
    kept: int  # bytes for the backward pass until here


def _forward(net: nn.Module, x: Inputs) -> list[_Run]:
    """Run the net without cuts: the modules that ran once and gave one tensor, in order, and the net itself as ""."""
    before = (*tensors_of(x), *net.parameters(), *net.buffers())
    sizes_by_address = {tensor.untyped_storage().data_ptr(): 0 for tensor in before}
    storages: list[UntypedStorage] = []  # kept alive, so that no address is used twice
    runs: list[_Run] = []
    times: Counter[str] = Counter()

    def pack(tensor: Tensor) -> None:
        storages.append(tensor.untyped_storage())
        sizes_by_address.setdefault(storages[-1].data_ptr(), storages[-1].nbytes())

    def look(name: str, h: object) -> None:
        times[name] += 1
        if (features := features_of(h)) is not None:
            reached = reached_parameters(net, features)
            runs.append(_Run(name, features, reached, sum(sizes_by_address.values())))

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, h: look(name, h)

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules() if name]
    try:
        with (
            rehearsal(net, x),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing),
            eager(),
        ):
            out = forward(net, x)
            runs.append(_Run("", out, reached_parameters(net, out), sum(sizes_by_address.values())))
    finally:
        for handle in handles:
            handle.remove()
    return [run for run in runs if not run.name or (times[run.name] == 1 and run.h is not out)]


def _refusal(net: nn.Module, name: str, x: Inputs) -> str | None:
    try:
        owners(net, [name], x)
    except UserError as error:
        return str(error)
    return None
