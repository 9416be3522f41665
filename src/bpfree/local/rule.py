"""LocalRule: the base class of a rule that says what each segment of a net minimises."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.grad import backward, inner, trainable
from bpfree.inputs import Inputs
from bpfree.local.autotaps import find_segments
from bpfree.local.channels_last import keep_order
from bpfree.local.cut import Taps
from bpfree.local.cutting import CutsNet
from bpfree.local.evenly import evenly, whole_stages
from bpfree.local.layers import layers_of
from bpfree.local.operations import flops_of_step
from bpfree.local.parts import SegmentTensors
from bpfree.local.passes import learn_by_segments, learn_end_to_end
from bpfree.local.segments import Segment, at_each_step, owners
from bpfree.local.step import Step
from bpfree.mesh import Part
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Flops, Locality, Rule
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task, is_per_step, pixels_of


class LocalRule(CutsNet, Rule):
    """A rule that says what each segment of a net minimises.

    A subclass defines `local_loss`. Where that is not enough, it can also override `local_gradient`, `head`, `scores`,
    `pass_on`, `error_of`, `default_taps` and `bind`. In its loss it can call `task_loss`, `input_of` and `layers_of`.

    Without `needs_error` a segment learns while the forward pass goes by: its loss is differentiated at its tap, within
    the segment, and its activations are freed. Peak activation memory is that of the largest segment.

    With `needs_error` the output error must be known first. `memory="fast"` keeps the activations of one forward pass;
    `memory="flat"` runs the net twice: first for the error, then again, and segments learn on the way. Both give the
    same weights, to the bit.

    If the net answers at each of T steps (a task that is `per_step`), so does a segment, and a step counts as a sample:
    losses, heads and signals see h as [B*T, ...] and the error or target of that step as [B*T, D]. With `keeps_steps`
    losses and heads see h as [B, T, ...], for heads that read several steps. How far a step's loss is differentiated
    back in time is decided by the net (`detach` of the recurrent nets: not at all).

    Args:
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each (3
            taps make 4 segments); "auto", the default: the stages of a Sequential, the blocks of another net
            (`bpfree.local.autotaps`).

    Attributes:
        needs_error: True if `local_loss` takes the output error as its signal, and not the target.
        has_heads: True if each hidden segment has a read-out, learned or fixed, and `local_loss` is the loss of what it
            reads, from the target. Then the sum of all losses has a gradient too, which `deep_supervision` follows.
        segments: the segments of the net; the last is the output segment, which learns from the task's loss.
        output_weight: the factor of the task's loss in the output segment.
        keeps_steps: True if `local_loss` takes the features of all steps of a sequence together, [B, T, ...].
        per_step: True if the task has a target at each step; `segments` then have the shape of one step.
        pixels: (H, W) if the task has an answer for each pixel, else None.
        segment_done: called with the index of a segment when its gradients are complete; it may use them up and free
            them at once.
    """

    needs_error: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False
    keeps_steps: ClassVar[bool] = False
    mesh_modes: ClassVar[tuple[str, ...]] = ("data", "blocks")
    looks_inside: ClassVar[bool] = False  # `cut` itself runs a compiled net as it was written
    takes_soft_labels: ClassVar[bool] = True
    segment_done: Callable[[int], None] | None = None
    memory: Literal["fast", "flat"] = "flat"
    segments: list[Segment]
    output_weight: float = 1.0
    per_step: bool = False
    pixels: tuple[int, int] | None = None

    def __init__(self, *, taps: Taps = None) -> None:
        super().__init__()
        if isinstance(taps, str) and taps != "auto":
            raise UserError(f"taps: found {taps!r}, allowed: 'auto', a number, or a list of names such as [{taps!r}]")
        self._task: Task | None = None
        self._step: Step | None = None  # that runs
        self._asked_taps = None if taps is None or taps == "auto" else taps if isinstance(taps, int) else tuple(taps)
        self.taps = self._asked_taps if isinstance(self._asked_taps, tuple) else ()
        self.segments = []
        self._chose_taps = False

    @property
    def is_bound(self) -> bool:
        """True if the net has been cut into segments."""
        return bool(self.segments)

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the segments of the net.

        Raises:
            UserError: the net cannot be cut at the taps (see `bpfree.local.segments.owners`), or nowhere.
        """
        self.segments = []  # if this net is refused, the rule must not train it with the cuts of an earlier one
        super().bind(net, task, batch)
        self._task, self.pixels = task, pixels_of(task)
        self.segments, self._chose_taps = self._find(net, batch.first(2).x)
        self.per_step = is_per_step(task)
        if self.per_step:
            self.segments = [*at_each_step(self.segments[:-1], batch.y.shape[1]), self.segments[-1]]
        self.taps = tuple(segment.name for segment in self.segments[:-1])
        if self.sees_inputs:
            hidden = enumerate(self.segments[:-1])
            self._layers = {name: index for index, segment in hidden for name in layers_of(net, segment)}

    def _find(self, net: nn.Module, x: Inputs) -> tuple[list[Segment], bool]:
        """The segments, and whether result.json should name their taps since nobody else knows them."""
        if isinstance(self._asked_taps, tuple):
            return owners(net, self._asked_taps, x), False
        if self._asked_taps is not None:
            # Without a tap the rule is backprop, by the user's wish.
            return owners(net, evenly(whole_stages(net, x), self._asked_taps) if self._asked_taps else (), x), True
        taps = self.default_taps(net, x)
        if taps is not None:
            return owners(net, taps, x), True
        return find_segments(net, x)

    def default_taps(self, net: nn.Module, x: Inputs) -> Sequence[str] | None:
        """Return the names of the submodules to cut behind if the user gave no taps.

        Args:
            net: the net to cut.
            x: [B, ...], a few samples.

        Returns:
            Names in any order, or None, the default: the stages of a Sequential, the blocks of another net.
        """
        return None

    def metadata(self) -> dict[str, str]:
        """Return the taps, if the rule chose them by itself."""
        return {"taps": ", ".join(self.taps)} if self._chose_taps else {}

    @abstractmethod
    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return what segment `index` minimises, 0-d.

        It is not called for the output segment, which minimises the task's loss.

        Args:
            index: number of the segment, 0 for the first.
            h: [B, ...], the output of the segment. Its graph reaches the segment's own parameters only.
            signal: [B, D], the output error dLoss/dout if the rule `needs_error`, else the target. The task `language`
                has the indices [B*T] of the next tokens as its target.
        """

    def local_gradient(self, index: int, h: Tensor, signal: Tensor) -> Tensor | None:
        """Return the gradient of `local_loss` in h, of its shape, if it is known without autograd; default: None.

        A rule that knows it saves the passes over memory that a loss and its derivative take.

        Args:
            index: number of the segment.
            h: [B, ...], the output of the segment, detached.
            signal: as for `local_loss`.

        """
        return None

    def head(self, index: int) -> nn.Module | None:
        """Return the submodule of the rule that trains together with segment `index`; default: None."""
        return None

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """Return the class scores [B, D] that the rule's head reads from a segment, for trackers; default: None.

        Args:
            index: number of the segment.
            h: [B, ...], the output of the segment.
        """
        return None

    def task_loss(self, scores: Tensor, signal: Tensor) -> Tensor:
        """Return the task's loss of scores that a head reads from a segment, 0-d, with class weights and the like.

        Args:
            scores: [B, D], or [B, C, H, W] if each pixel has an answer.
            signal: the target, as `local_loss` gets it.
        """
        assert self._task is not None, "bind sets it"
        step = self._step
        if step is None:
            return self._task.loss(scores, Batch(scores, signal))
        if getattr(self._task, "takes_target", False) and not step.is_target(signal):
            return self._task.loss(scores, step.batch._replace(y=signal))
        # The loss of a user's task may take only the y of its own data set. Class indices are also faster than one-hot.
        y = step.batch.y
        return self._task.loss(scores, step.batch._replace(y=y.flatten(0, 1)) if self.per_step else step.batch)

    def once(self, make: Callable[[Tensor], Tensor], signal: Tensor) -> Tensor:
        """Return make(signal), computed once in a step if all segments get the same signal; for use in `local_loss`.

        Args:
            make: a function, or a method of the rule.
            signal: as `local_loss` gets it.
        """
        return make(signal) if self._step is None else self._step.once(make, signal)

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Run one or two forward passes, in which or after which every segment learns.

        Raises:
            UserError: the rule is not bound. Without its cuts it would be backprop under another name.
        """
        return self._learn(learn_by_segments, net, task, batch, noise)

    def gradients_end_to_end(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradient of the sum of all local losses and the task's, through the whole net; see `gradients`."""
        return self._learn(learn_end_to_end, net, task, batch, noise)

    def _learn(self, run: Callable[..., Scalars], net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        self.refuse_unbound()
        refuse_wrapped(net, type(self).__name__, deep=False)
        self._task, self._step = task, Step(task, batch)
        try:
            return run(self, net, task, batch, noise)
        finally:
            self._step = None

    def target(self, task: Task, batch: Batch) -> Tensor:
        """Return the target of the batch [B, D]; within a step it is computed once."""
        return task.target(batch) if self._step is None else self._step.target

    def segment_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return `local_loss` of a hidden segment, 0-d; the arguments are those of `learn_segment`."""
        return self.local_loss(index, *self._by_step(h, signal))

    def _by_step(self, h: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return h as [B*T, ...] and the signal as [B*T, D] or indices [B*T], if the task has a target at each step."""
        if not self.per_step:
            return h, signal
        signal = signal if signal.dim() == 1 else signal.reshape(h.shape[0] * h.shape[1], -1)
        return h if self.keeps_steps else h.flatten(0, 1), signal

    def learn_segment(self, index: int, h: Tensor, signal: Tensor) -> Scalars:
        """Add the gradients of a hidden segment and of its head. Rules that run the net themselves call it at a tap.

        Args:
            index: number of the segment.
            h: [B, ...], its output, attached to the segment.
            signal: the signal for `local_loss`, [B, D] or [B, T, D].

        Returns:
            `loss/<tap>`; nothing if the segment has nothing to train.
        """
        if not h.requires_grad and self.head(index) is None:
            return {}  # every parameter of the segment is frozen
        keep_order(h)
        h, signal = self._by_step(h, signal)
        gradient = self.local_gradient(index, h.detach(), signal)
        if gradient is not None:
            backward(h, gradient)
            loss = inner(h.detach(), gradient.to(h.dtype))
        else:
            loss = self.local_loss(index, h, signal)
            self._differentiate(loss)
        self.finish_segment(index)
        return self.noted({f"loss/{self.taps[index]}": loss.detach()})

    def learn_output(self, task: Task, out: Tensor, batch: Batch) -> Scalars:
        """Add the gradients of the output segment, from the task's loss.

        Args:
            task: gives the loss and the metrics.
            out: [B, D], the output of the net, attached to the output segment.
            batch: the samples and targets.

        Returns:
            The metrics of the output, and `loss`.
        """
        loss = task.loss(out, batch)
        self._differentiate(loss if self.output_weight == 1 else self.output_weight * loss)
        self.finish_segment(len(self.taps))
        return metrics_of(task, out.detach(), batch, loss.detach())

    def _differentiate(self, loss: Tensor) -> None:
        backward(loss, None if self._step is None else self._step.one_like(loss))

    def finish_segment(self, index: int) -> None:
        """Say that the gradients of segment `index` are complete, so that they can be used and its inputs dropped."""
        self.forget_inputs(index)
        if self.segment_done is not None:
            self.segment_done(index)

    def flops(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Flops | None:
        """Return the operations of a step, or None without heads; see `Rule.flops`."""
        return flops_of_step(self, net, task, batch, noise) if self.has_heads else None

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 1, or 2 if hidden segments learn in a second pass, in which the error is known."""
        return 2 if self.needs_error and self.memory == "flat" and len(self.taps) > 1 else 1

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if the segments wait for the error of the output, and are to be in several processes."""
        super().refuse_mesh(mode, net)
        if mode == "blocks" and self.locality().waits:
            raise UserError(
                f"mesh: found 'blocks', but the parts of {type(self).__name__} wait for the output of the net, which "
                "only the last process has. Use train.mesh=data, or a rule whose parts do not wait, such as drtp, "
                "mono_forward or predsim"
            )

    def parts(self, net: nn.Module, batch: Batch) -> list[Part]:
        """Return the segments with their heads; the last part has everything behind it, too."""
        few = batch.first(2).x
        held = SegmentTensors(net, self.segments, few)
        count = len(self.units(net))
        self._held, self._earlier = held.names, None
        found: list[Part] = []
        for index in range(count):
            own = range(index, len(self.segments) if index == count - 1 else index + 1)
            heads = [head for i in own if (head := self.head(i)) is not None]
            tensors = [t for i in own for t in held.tensors(i)] + [t for head in heads for t in _tensors(head)]
            trained = [p for i in own for p in self.unit(net, i)]
            found.append(Part(sum(held.operations[i] for i in own), trained, tensors, tensors))
        return found

    def locality(self) -> Locality:
        """Declare one segment at a time; with `needs_error` segments wait, and are kept unless `memory` is flat."""
        keeps = self.needs_error and self.memory == "fast"
        return LOCAL._replace(waits=self.needs_error, memory="grows" if keeps else "flat")

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Return the parameters of each segment and its head."""
        return [self.unit(net, index) for index in range(len(self.segments))]

    def unit(self, net: nn.Module, index: int) -> list[nn.Parameter]:
        """Return the parameters of segment `index` and of its head.

        Args:
            net: the net that the rule is bound to.
            index: number of the segment; the last is the output segment.
        """
        head = self.head(index)
        own = [net.get_parameter(name) for name in self.segments[index].parameters]
        return own + (trainable(head) if head else [])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
