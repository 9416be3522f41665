"""A step of training that is captured once and replayed: `StepGraph`.

A small net's step on a GPU is hundreds of kernels, and Python takes longer to start them than the GPU to run them. A
CUDA graph is the list of these kernels with their addresses in memory. The GPU runs the whole list by itself.

Captured is everything from zero_grad to the step of the optimiser: the rule's gradients, the clipping and the update.
The host keeps what the kernels read from fixed places up to date: the batch, the number of the step
(`bpfree.noise.Clock`) and the learning rates (`bpfree.training.rates`). The schedule, the counters and the listeners
stay on the host, too.

A step is taken eagerly, that is by Python,

- in the first steps, in which the optimiser makes its state and libraries choose their kernels;
- if a listener looks at the gradients of this step;
- for a batch of another shape, such as the last one of an epoch; the next whole batch is replayed again;
- with `update: fused`, and for a rule, a net or an optimiser that cannot be captured. The log says why, once.

Two of the first steps are watched (`bpfree.training.watch`). A step that reads a value back to the host, or does
something else than the step before, is not captured. While a graph is in use, `bpfree.training.places` looks before
each replay if everything still lies where it lay: a net that was moved, an optimiser that loaded a state, or an option
that changed leads to a new graph.

Replayed and eager steps give the same bits. Python code in a net's `forward` or in hooks, such as a counter or a print,
runs when the step is captured, and not when it is replayed.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.inputs import apply, tensors_of
from bpfree.noise import Clock, NotCapturable
from bpfree.training.places import Places
from bpfree.training.step_key import StepKey
from bpfree.training.watch import Watch
from bpfree.types import Batch, Scalars

log = logging.getLogger(__name__)

Graph = Literal["auto", "on", "off"]
"""Whether steps are captured; `bpfree.training.compute.Compute` describes it."""

_EAGER = 3  # steps before the first capture: the optimiser's state comes into being in one, and two are compared
_WASTED = 3  # graphs that were soon of no use, before we give up


class Recording(Protocol):
    """Operations of a device that were recorded once and can run again on the same memory."""

    def __init__(self, device: torch.device) -> None: ...

    def warm_up(self) -> AbstractContextManager[Any]:
        """Return the context of the eager steps before a capture."""

    def capture(self) -> AbstractContextManager[Any]:
        """Return the context whose operations are recorded; they take effect when they are replayed."""

    def replay(self) -> None:
        """Run the recorded operations."""


class CudaRecording:
    """A recording of kernels as a CUDA graph.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    @contextmanager
    def warm_up(self):  # type: ignore[no-untyped-def]
        """Run the block on a stream of its own, as torch asks for before a capture."""
        main = torch.cuda.current_stream(self._device)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            yield
        main.wait_stream(side)

    @contextmanager
    def capture(self):  # type: ignore[no-untyped-def]
        """Record the kernels of the block. Other threads, which may load data, are left alone."""
        # The outer context puts the stream back even if the end of a capture raises.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(self._graph, capture_error_mode="thread_local"),
        ):
            yield

    def replay(self) -> None:
        """Start all kernels at once, on the current stream."""
        self._graph.replay()


RECORDERS: dict[str, type[Recording]] = {"cuda": CudaRecording}
"""What records a step, by the kind of device. Steps on other devices are not captured."""


class _Recorded:
    """A step that was captured and can be replayed.

    Args:
        take: the step, which is captured here.
        form: of the batches that it can be replayed with.
        batch: a batch whose memory the step may read whenever it is replayed.
        places: where the step reads and writes.
        clock: the step's number.
        recording: empty.
    """

    def __init__(
        self,
        take: Callable[[Batch], Scalars],
        form: tuple[Any, ...],
        batch: Batch,
        places: Places,
        clock: Clock,
        recording: Recording,
    ) -> None:
        self.form, self._batch, self.places, self._recording = form, batch, places, recording
        self.replays = 0
        # Not still: a net that draws numbers for the first time now must draw them from the key.
        before, clock.hidden, clock.still = clock.still, True, False
        try:
            with recording.capture():
                scalars = take(batch)
                self._stacks = _stacked(scalars, batch.device)
        finally:
            clock.hidden, clock.still = False, before
        self._names = list(scalars)
        self._gradients = [(p, p.grad) for p in places.parameters]

    def replay(self, batch: Batch) -> Scalars:
        """Take the step on a batch of the same form."""
        for static, t in zip(_tensors(self._batch), _tensors(batch), strict=True):
            if static is not t:
                static.copy_(t, non_blocking=True)
        self._recording.replay()
        self.replays += 1
        # An eager step in between may have put other tensors there. The graph does not read them, but the user may.
        for p, gradient in self._gradients:
            if p.grad is not gradient:
                p.grad = gradient
        return self._scalars()

    def _scalars(self) -> Scalars:
        """Return copies: the next replay writes to the same memory, and the caller keeps the scalars of many steps."""
        values = {name: v for names, t in self._stacks for name, v in zip(names, t.clone().unbind(), strict=True)}
        return {name: values[name] for name in self._names}


class StepGraph:
    """Takes steps of training, by replaying a captured one where this is possible.

    Args:
        take: the part of a step that happens on the device.
        places: a function that notes where the step reads and writes.
        key: makes the random key of a step.
        device: the device; RECORDERS has it.
        wanted: "auto" or "on"; with "on" the log warns if steps are not captured.

    Attributes:
        used: True if a captured step was replayed.
        reason: why steps are not captured; None if they are, or will be.
    """

    def __init__(
        self,
        take: Callable[[Batch], Scalars],
        places: Callable[[], Places],
        key: StepKey,
        device: torch.device,
        wanted: Graph,
    ) -> None:
        assert key.clock is not None
        self._take, self._places, self._clock, self._device = take, places, key.clock, device
        self._level = logging.WARNING if wanted == "on" else logging.INFO
        self._recorded: _Recorded | None = None
        self._static: Batch | None = None  # the batch of the eager steps that come before a capture
        self._form: tuple[Any, ...] = ()  # of that batch, and of those that can be replayed
        self._recording: Recording | None = None
        self._watches: list[Watch] = []
        self._eager, self._wasted, self._strange = 0, 0, 0  # the last: batches of another form in a row
        self.used = False
        self.reason: str | None = None

    def __call__(self, batch: Batch) -> Scalars:
        """Take one step, replayed or eagerly.

        Args:
            batch: the batch, on the device.

        Returns:
            The rule's scalars.
        """
        if self.reason is not None:
            return self._take(batch)
        form = form_of(batch)
        if self._recorded is not None and self._recorded.form == form:
            changed = self._recorded.places.changed()
            if changed is None:
                self._strange = 0
                return self._recorded.replay(batch)
            self._drop(changed)
            if self.reason is not None:
                return self._take(batch)
        if self._form and self._form != form and self._strange < _EAGER:  # such as the last batch of an epoch
            self._strange += 1
            return self._take(batch)
        self._strange = 0
        if self._static is None or self._form != form:
            self._prepare(batch)
        if self._eager < _EAGER:
            return self._warm_up(batch)
        return self._capture(batch)

    def give_up(self, reason: str) -> None:
        """Take all further steps eagerly.

        Args:
            reason: told in the log.
        """
        self.reason, self._recorded, self._static, self._recording = reason, None, None, None
        self._watches.clear()
        log.log(self._level, "graph: steps are not captured, since %s", reason)

    def _prepare(self, batch: Batch) -> None:
        """Begin to warm up for batches of this form."""
        self._static = batch._replace(x=apply(batch.x, torch.clone), y=batch.y.clone())
        self._form = form_of(batch)
        self._recording = RECORDERS[self._device.type](self._device)
        self._eager = 0
        self._watches.clear()

    def _drop(self, changed: str) -> None:
        """Discard the captured step, because something that it reads or writes has changed; then warm up again.

        Args:
            changed: what has changed, in words.
        """
        assert self._recorded is not None
        self._wasted = self._wasted + 1 if self._recorded.replays < 2 * _EAGER else 0
        self._recorded, self._static = None, None
        log.debug("graph: captured anew, since %s changed", changed)
        if self._wasted == _WASTED:
            self.give_up(f"{changed} changes every few steps")

    def _warm_up(self, batch: Batch) -> Scalars:
        """Take an eager step on the static batch; all but the first are watched."""
        assert self._static is not None
        assert self._recording is not None
        _copy(self._static, batch)
        self._eager += 1
        with self._recording.warm_up():
            if self._eager == 1:
                return self._take(self._static)
            with Watch(self._device) as watch:
                scalars = self._take(self._static)
        self._watches.append(watch)
        reason = watch.reason or (len(self._watches) == 2 and self._watches[0].difference(watch)) or None
        if reason:
            self.give_up(reason)
        return scalars

    def _capture(self, batch: Batch) -> Scalars:
        """Capture the step and replay it; a step that cannot be captured is taken eagerly."""
        assert self._static is not None
        assert self._recording is not None
        places, static, recording = self._places(), self._static, self._recording
        _copy(static, batch)
        try:
            recorded = _Recorded(self._take, self._form, static, places, self._clock, recording)
            if (changed := places.changed() or places.grown()) is not None:
                raise NotCapturable(f"a step replaces {changed} by another object; write into it instead")
        # Whatever a foreign rule or net raises here: the eager step raises it again if it is not about the capture.
        except Exception as error:
            self.give_up(" ".join(str(error).split())[:300])
            for p in places.parameters:
                p.grad = None
            return self._take(batch)
        self._recorded, self._recording, self.used = recorded, None, True
        return recorded.replay(batch)


def allowed(graph: Graph, device: torch.device) -> Graph:
    """Return what the user wants, but "off" in place of "auto" on a device without graphs.

    Raises:
        UserError: the user wants a graph on such a device.
    """
    if device.type in RECORDERS:
        return graph
    if graph == "on":
        raise UserError(
            f"compute.graph: found 'on', but the net is on the device {device.type}, and only a step on CUDA can be "
            "captured. Allowed: auto or off, or a net on a GPU"
        )
    return "off"


def form_of(batch: Batch) -> tuple[Any, ...]:
    """Return what two batches must have in common to be used by the same captured step."""
    x = tuple(batch.x) if isinstance(batch.x, dict) else type(batch.x)
    return (x, *((t.shape, t.dtype, t.stride()) for t in _tensors(batch)))


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return (*tensors_of(batch.x), batch.y)


def _copy(static: Batch, batch: Batch) -> None:
    for to, t in zip(_tensors(static), _tensors(batch), strict=True):
        to.copy_(t, non_blocking=True)


def _stacked(scalars: Scalars, device: torch.device) -> list[tuple[list[str], Tensor]]:
    """Return the scalars in one tensor for each number type, with the names of its elements."""
    by_type: dict[torch.dtype, list[str]] = {}
    for name, value in scalars.items():
        if value.device.type != device.type:
            raise NotCapturable(f"the scalar '{name}' is on the {value.device.type}")
        by_type.setdefault(value.dtype, []).append(name)
    return [(names, torch.stack([scalars[name] for name in names])) for names in by_type.values()]
