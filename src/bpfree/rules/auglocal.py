"""AugLocal: the auxiliary net of a segment is made of layers like those that follow it in the net.

Ma, Wu, Si, Tan 2024, "Scaling Supervised Local Learning with Augmented Auxiliary Networks",
https://arxiv.org/abs/2402.17318

    loss_k = loss(head_k(h_k), y),    the graph is cut between segments
    head_k = d_k fresh layers, then the mean over places and a linear classifier
    layer i of head_k is of the kind of layer round(k + (L - k - 1) i / d_k) of the net, i = 1 ... d_k
    d_k = round(d (1 - r) + r),    r = c k / (K - 2),    at least 1;    the last d + 1 layers are the output segment

L is the number of layers, here stages: a residual block is one. K is the number of segments. So the depth of heads
falls from d at the first segment to d (1 - c) + c at the last hidden one (the "pyramid", c = 0.5).

Where we differ: the authors' code, https://github.com/ChenxiangMA/AugLocal, knows the blocks of its ResNets and makes
new ones. Here a layer is a copy of a stage of any net, whose weights are permuted at random, so it starts as the net's
author wanted it. Where the copy does not take the features, an earlier stage with the same output is copied, such as
the first block of a level, which halves the map. If there is none, means over places and a linear map of the channels
come first. Copies do not drop units. Heads of one layer have batch norm before the classifier in the authors' code, and
not here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.grad import detach_input
from bpfree.inputs import Inputs
from bpfree.local.autotaps import find_segments
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.cut import Taps
from bpfree.local.heads.copies import Adapter, Copies, fresh
from bpfree.local.heads.features import Features
from bpfree.local.heads.linear import PixelLinear, head_shape
from bpfree.local.heads.stages import Stage, Stages, stages_of
from bpfree.local.segments import Segment, channel_axis
from bpfree.rule import Locality
from bpfree.types import Batch, Task


class AugLocal(AuxiliaryRule):
    """The task's loss of each segment, through copies of later stages of the net.

    Args:
        depth: d, the number of layers in the head of the first segment.
        pyramid: c, how much the depth of heads falls towards the output: 0 keeps it, 1 leaves one layer to the last.
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage is a segment, but the last d + 1 are the output segment.

    Attributes:
        copies_modules: True, since heads are made of the modules of the net, and so depend on how it is written.
    """

    copies_modules: ClassVar[bool] = True

    def __init__(self, *, depth: int = 2, pyramid: float = 0.5, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_positive("depth", depth)
        if not 0 <= pyramid <= 1:
            raise UserError(f"pyramid: found {pyramid}, allowed: a number from 0 to 1")
        self.depth = depth
        self.pyramid = pyramid
        self._stages: Stages | None = None
        self._more: dict[int, tuple[Sequence[object], dict[str, object]]] = {}  # further arguments, by segment

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str]:
        """Return the ends of all stages but the last d + 1; at least one if the net can be cut at all."""
        names = _ends_of_stages(net, x)
        return names[: max(1, len(names) - self.depth - 1)]

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Copy stages of the net for the head of each hidden segment; see `AuxiliaryRule`."""
        self._stages = None
        super().bind(net, task, batch)

    def locality(self) -> Locality:
        """Declare a local rule whose copies begin with the values that the weights had when the rule was bound."""
        return super().locality()._replace(transports="initial")

    def depth_of(self, index: int) -> int:
        """Return d_k, the number of layers in the head of a hidden segment.

        Args:
            index: k, number of the segment.
        """
        hidden = len(self.taps)
        r = self.pyramid * index / (hidden - 1) if hidden > 1 else 0.0
        return max(1, round(self.depth * (1 - r) + r))

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return a new auxiliary net of copied stages for a hidden segment; see `AuxiliaryRule`."""
        x = batch.first(2).x
        if self._stages is None:
            self._stages = stages_of(net, _ends_of_stages(net, x), self.taps, x)
        stages, shape = self._stages.stages, self._stages.shapes[index]
        after = max(0, self._stages.ends[index] - 1)
        copies: list[nn.Module] = []
        more: list[bool] = []
        stage: Stage | None = None
        tap = type(net.get_submodule(self.taps[index]))
        for i in layers_after(after, len(stages), self.depth_of(index)):
            stage = _that_takes(shape, stages[after + 1 : i + 1])
            made = fresh(stage.originals(net))
            if stage.takes != shape:
                last = channel_axis(net, self.segments[index]) == -1
                made.insert(0, _fitted(shape, stage.takes, last=last))
            copies += made
            # Only a block of the same class as the tapped one takes what that one gets beside its input.
            more += [stage.more and len(made) == 1 and type(made[0]) is tap] * len(made)
            shape = stage.gives
        head = _Head(Copies(copies, more), self._reader(index, stage, net, task))
        if not any(more):
            _try(head, self._stages.shapes[index], net, self.taps[index])
        return head

    def _reader(self, index: int, stage: Stage | None, net: nn.Module, task: Task) -> nn.Module:
        """The classifier behind the last copied stage; without copies, behind the segment itself."""
        segment, normed = self.segments[index], False
        if stage is not None:
            named = dict(net.named_parameters())
            own = tuple(n for n in named if any(n.startswith(f"{module}.") for module in stage.modules))
            segment = Segment(segment.name, stage.gives[1:] if self.per_step else stage.gives, own)
            normed = isinstance(stage.originals(net)[-1], nn.LayerNorm | nn.RMSNorm)
        if self.pixels is not None:
            classes, channels = head_shape(segment, task.dim, self.pixels)
            return PixelLinear(channels, classes, self.pixels, zero=False)
        features = Features.of(net, segment, per_step=self.per_step)
        return nn.Sequential(*features.to_vector(net, norm=not normed), nn.Linear(features.channels, task.dim))

    def scores(self, index: int, h: Tensor) -> Tensor:
        """Return the scores that the auxiliary net reads, in the shape of the net's output."""
        args, kwargs = self._more.get(index, ((), {}))
        scores: Tensor = self.heads[index](h, *args, **kwargs)
        return scores

    @contextmanager
    def cut_net(
        self, net: nn.Module, x: Inputs, visit: Callable[[int, Tensor], object], *, attached: bool = False
    ) -> Iterator[None]:
        """Cut the net as every local rule does, and note what tapped blocks get beside their input, such as masks."""
        wanting = [index for index, head in enumerate(self.heads) if isinstance(head, _Head) and any(head.body.more)]

        def note_for(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                given, _, _ = detach_input(args, kwargs)
                named = {name: _detached(value) for name, value in kwargs.items() if value is not given}
                self._more[index] = tuple(_detached(value) for value in args[1:]), named

            return note

        with ExitStack() as stack:
            stack.callback(self._more.clear)
            for index in wanting:
                module = net.get_submodule(self.taps[index])
                handle = module.register_forward_pre_hook(note_for(index), with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(super().cut_net(net, x, visit, attached=attached))
            yield


class _Head(nn.Module):
    """Copied stages and a classifier."""

    def __init__(self, body: Copies, read: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.read = read

    def forward(self, h: Tensor, *args: object, **kwargs: object) -> Tensor:
        scores: Tensor = self.read(self.body(h, *args, **kwargs))
        return scores


def layers_after(k: int, layers: int, depth: int) -> list[int]:
    """Return which layers behind layer k an auxiliary net is made of, evenly spread up to the last one.

    Args:
        k: the layer at which the segment ends, from 0.
        layers: L, the number of layers of the net.
        depth: d_k, how many to take; if there are not more behind k, all of them are taken.

    Example:
        >>> layers_after(3, 16, 2)
        [9, 15]
    """
    if depth >= layers - 1 - k:
        return list(range(k + 1, layers))
    return [round(k + (layers - k - 1) / depth * i) for i in range(1, depth + 1)]


def _ends_of_stages(net: nn.Module, x: Inputs) -> list[str]:
    return [segment.name for segment in find_segments(net, x).segments[:-1]]


def _that_takes(shape: torch.Size, stages: Sequence[Stage]) -> Stage:
    """The last stage; if it does not take features of this shape, a stage before it that does and gives the same."""
    fitting = (stage for stage in reversed(stages) if stage.takes == shape and stage.gives == stages[-1].gives)
    return next(fitting, stages[-1])


def _fitted(given: torch.Size, wanted: torch.Size, *, last: bool) -> nn.Module:
    """A layer that brings features to a shape; it has no weights if their number stays."""
    if prod(given) == prod(wanted) and len(given) != len(wanted):
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, tuple(wanted)))
    return Adapter(given, wanted, last=last)


def _detached(value: object) -> object:
    """The value without a graph. Objects such as caches of keys do not go to a copy, since it would change them."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (tuple, list):  # not of their subclasses, which may be such objects
        return type(value)(_detached(each) for each in value)  # type: ignore[call-arg, attr-defined]
    return value if isinstance(value, bool | int | float | str) else None


def _try(head: nn.Module, shape: torch.Size, net: nn.Module, tap: str) -> None:
    """Raise UserError if a head cannot run: its copies may need what only the net knows."""
    like = next(net.parameters())
    evaluated = head.to(device=like.device, dtype=like.dtype).eval()
    try:
        with torch.no_grad():
            evaluated(like.new_zeros(2, *shape))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"net: copies of the stages behind tap '{tap}' do not run on its output ({error}). auglocal needs stages "
            "that take one tensor each, as those of an nn.Sequential do. Choose other taps, or use dgl or greedy"
        ) from error
    finally:
        evaluated.train()
