"""A rule that says what each segment of a net minimises."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.grad import backward, output_error, trainable
from bpfree.inputs import forward
from bpfree.local.autotaps import find_segments
from bpfree.local.channels_last import keep_order
from bpfree.local.cut import Segment, Taps, at_each_step, cut, owners
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Locality, Rule
from bpfree.types import Batch, Scalars, Task, is_per_step, pixels_of


class LocalRule(Rule):
    """A rule that says what each segment of a net minimises.

    Without `needs_error` a segment learns while the forward pass goes by: at its tap its loss is differentiated
    within the segment and its activations are freed. Peak activation memory is that of the largest segment.

    With `needs_error` the output error must be known first. `memory="fast"` keeps the activations of one forward
    pass; `memory="flat"` runs the net twice, first for the error and then learning on the way. The last hidden segment
    and the output learn at the end of the first pass, which the second therefore need not repeat. Dropout masks are
    the same in both passes and batch-norm statistics are updated once, so both give the same weights, to the bit.

    Where the net answers at each of T steps (a task that is `per_step`), so does a segment: a step counts as a sample.
    Losses, heads and signals see h as [B*T, ...] and the error or target of that step as [B*T, D]; what a step's loss
    is differentiated through in time is the net's affair (`detach` of the recurrent nets: nothing).

    Args:
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net (`bpfree.local.autotaps`).
    """

    needs_error: ClassVar[bool] = False
    looks_inside: ClassVar[bool] = False  # `cut` sees to it
    takes_soft_labels: ClassVar[bool] = True
    segment_done: Callable[[int], None] | None = None
    """Told, if set, when the gradients of a segment are complete; it may use them up and free them at once."""
    memory: Literal["fast", "flat"] = "flat"
    taps: tuple[str, ...]
    segments: list[Segment]
    output_weight: float = 1.0  # of the task's loss, which the output segment minimises
    per_step: bool = False  # of the task: segments have an output at each step, of which `segments` has the shape
    pixels: tuple[int, int] | None = None  # of the task: (H, W) if each pixel has an answer of its own

    def __init__(self, *, taps: Taps = None) -> None:
        super().__init__()
        if isinstance(taps, str) and taps != "auto":
            raise UserError(f"taps: found {taps!r}, allowed: 'auto', or a list of names such as [{taps!r}]")
        self._task: Task | None = None
        self._batch: Batch | None = None  # of the step that runs
        self._asked_taps = None if taps is None or taps == "auto" else tuple(taps)
        self.taps = self._asked_taps or ()
        self.segments = []
        self._searched = False

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the segments; see `bpfree.local.cut.owners` for what is refused."""
        super().bind(net, task, batch)
        self._task, self.pixels = task, pixels_of(task)
        if self._asked_taps is None:
            self.segments, self._searched = find_segments(net, batch.first(2).x)
        else:
            self.segments = owners(net, self._asked_taps, batch.first(2).x)
        self.per_step = is_per_step(task)
        if self.per_step:
            self.segments = [*at_each_step(self.segments[:-1], batch.y.shape[1]), self.segments[-1]]
        self.taps = tuple(segment.name for segment in self.segments[:-1])

    def metadata(self) -> dict[str, str]:
        """Where the net is cut, if the rule looked for it by itself."""
        return {"taps": ", ".join(self.taps)} if self._searched else {}

    @abstractmethod
    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """What segment `index` minimises, 0-d.

        Args:
            index: of the segment, 0 for the first; the output segment is not asked, it has the task's loss.
            h: [B, ...], its output, attached to its own segment only.
            signal: [B, D], the output error dLoss/dout if the rule `needs_error`, else the target.
        """

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor | None:
        """The gradient of `local_loss` in h, of its shape, where it is known without autograd; default: it is not.

        It saves the passes over memory that a loss and its derivative take. h is detached.
        """
        return None

    def head(self, index: int) -> nn.Module | None:
        """The part of the rule that trains together with segment `index`, if any."""
        return None

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """Class scores [B, D] that segment `index` reads from its output h by a head of its own, if it has one."""
        return None

    def task_loss(self, scores: Tensor, signal: Tensor) -> Tensor:
        """The task's loss, 0-d, of scores that a head reads from a segment, with its class weights and the like.

        Args:
            scores: [B, D], or [B, C, H, W] if each pixel has an answer.
            signal: the target, as `local_loss` is given it.
        """
        assert self._task is not None, "bind sets it"
        if self._batch is None or getattr(self._task, "takes_target", False):
            return self._task.loss(scores, Batch(scores if self._batch is None else self._batch.x, signal))
        y = self._batch.y
        return self._task.loss(scores, self._batch._replace(y=y.flatten(0, 1) if self.per_step else y))

    def pass_on(self, index: int, h: Tensor) -> Tensor:
        """What the next segment sees of the output h of segment `index`; default: h itself."""
        return h

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """One or two forward passes; see the class.

        Raises:
            UserError: the rule is not bound, so that nothing would be cut.
        """
        if not self.segments:
            raise UserError(f"{type(self).__name__}: not bound to a net. Call rule.bind(net, task, batch) first")
        refuse_wrapped(net, type(self).__name__, deep=False)
        self._task, self._batch = task, batch
        try:
            if not self.needs_error:
                return self._learn_on_the_way(net, task, batch, noise, task.target(batch))
            if self.memory == "fast":
                return self._learn_afterwards(net, task, batch, noise, keep_from=0, errors=[])
            return self._learn_in_two_passes(net, task, batch, noise)
        finally:
            self._batch = None

    def locality(self) -> Locality:
        """A segment at a time; with `needs_error` it waits, and keeps what it has seen unless `memory` is flat."""
        keeps = self.needs_error and self.memory == "fast"
        return LOCAL._replace(waits=self.needs_error, memory="grows" if keeps else "flat")

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """The segments, each with its head."""
        return [self.unit(net, index) for index in range(len(self.segments))]

    def unit(self, net: nn.Module, index: int) -> list[nn.Parameter]:
        """The parameters of segment `index` and of its head."""
        head = self.head(index)
        own = [net.get_parameter(name) for name in self.segments[index].parameters]
        return own + (trainable(head) if head else [])

    def _learn_on_the_way(self, net: nn.Module, task: Task, batch: Batch, noise: Noise, signal: Tensor) -> Scalars:
        scalars: Scalars = {}

        def learn(index: int, h: Tensor) -> Tensor:
            scalars.update(self._learn(index, h, signal))
            return self.pass_on(index, h.detach())

        with cut(net, self.taps, learn, self._again):
            with noise.global_rng(batch.device):
                out = forward(net, batch.x)
            return scalars | self._learn_output(task, out, batch)

    def _learn_in_two_passes(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        last = len(self.taps) - 1
        signal: list[Tensor] = []
        final = self._learn_afterwards(net, task, batch, noise, keep_from=last, errors=signal)
        scalars: Scalars = {}

        def learn(index: int, h: Tensor) -> Tensor:
            scalars.update(self._learn(index, h, signal[0]))
            if index == last - 1:
                raise _Enough
            return self.pass_on(index, h.detach())

        if last > 0:
            with suppress(_Enough), noise.global_rng(batch.device), cut(net, self.taps, learn, self._again):
                forward(net, batch.x)
        return scalars | final

    def _learn_afterwards(
        self, net: nn.Module, task: Task, batch: Batch, noise: Noise, *, keep_from: int, errors: list[Tensor]
    ) -> Scalars:
        """One pass that keeps the activations of the segments from `keep_from` on, which then learn; tells the error.

        What the segments before do to buffers is undone: theirs is yet to come.
        """
        kept: list[tuple[int, Tensor]] = []
        rehearsal = ExitStack()

        def keep(index: int, h: Tensor) -> Tensor:
            if index >= keep_from:
                kept.append((index, h))
            if index == keep_from - 1:
                rehearsal.close()
            return self.pass_on(index, h.detach())

        with cut(net, self.taps, keep, self._again):  # until all is learned: checkpointing runs modules again
            with rehearsal, noise.global_rng(batch.device):
                if keep_from > 0:
                    rehearsal.enter_context(unchanged_buffers(net))
                out = forward(net, batch.x)
            error = output_error(task, out, batch)
            errors.append(error)
            if self.output_weight == 1:  # it is the gradient that the output segment needs, too
                backward(out, error.view_as(out).to(out.dtype))
                self._tell_done(len(self.taps))
                last = task.metrics(out.detach(), batch)
            else:
                last = self._learn_output(task, out, batch)
            return self._learn_kept(kept, error) | last

    def _learn_kept(self, kept: list[tuple[int, Tensor]], error: Tensor) -> Scalars:
        """From the last, whose input is the output of the one before, so that each can be freed."""
        scalars: Scalars = {}
        while kept:
            index, h = kept.pop()
            scalars = self._learn(index, h, error) | scalars
            del h
        return scalars

    def _again(self, index: int, h: Tensor) -> Tensor:
        """What goes on where activation checkpointing computes a segment a second time."""
        return self.pass_on(index, h.detach())

    def _learn_output(self, task: Task, out: Tensor, batch: Batch) -> Scalars:
        loss = task.loss(out, batch)
        backward(loss if self.output_weight == 1 else self.output_weight * loss)
        self._tell_done(len(self.taps))
        return task.metrics(out.detach(), batch) | {"loss": loss.detach()}

    def _learn(self, index: int, h: Tensor, signal: Tensor) -> Scalars:
        if not h.requires_grad and self.head(index) is None:
            return {}  # nothing here is trainable
        keep_order(h)
        if self.per_step:
            h = h.flatten(0, 1)
            signal = signal.reshape(len(h), -1)
        known = self.local_gradient(index, h.detach(), signal)
        if known is not None:
            backward(h, known)
            loss = (h.detach() * known).sum()
        else:
            loss = self.local_loss(index, h, signal)
            backward(loss)
        self._tell_done(index)
        return {f"loss/{self.taps[index]}": loss.detach()}

    def _tell_done(self, index: int) -> None:
        if self.segment_done is not None:
            self.segment_done(index)


class _Enough(Exception):  # noqa: N818, no error
    """Ends a forward pass of which the rest is known."""
