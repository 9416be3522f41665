"""A test bench: steps of training, taken again and again from the same state, with one thing changed each time."""

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.lab.certify.layers import Layers
from bpfree.lab.certify.state import State
from bpfree.lab.certify.watch import retained
from bpfree.local.channels_last import channels_last
from bpfree.noise import Noise
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars

Gradients = dict[str, Tensor]  # by the name of the parameter; parameters without a gradient are missing
Call = tuple[int, AbstractContextManager[object]]
"""The number of a step, and a context in which this step alone is taken."""

STEPS = (0, 1, 2, 17, 1000)
"""The numbers of the steps that are measured, unless a rule needs more of them to train every unit."""

_MOST_STEPS = 40  # a rule that trains one of ten blocks at random has trained each by then, with probability 0.86
_ROUNDING = 1e-6  # of the largest element of a gradient
_REPEATABLE = 1e-3  # likewise: two equal runs that differ by more are not repeatable
_MOVED = 1e-5  # of the largest weight; smaller changes are rounding errors


class UnrepeatableError(UserError):
    """The error that a rule gives other gradients in a second run that equals the first."""


class Recorder(torch.optim.Optimizer):
    """An optimiser that keeps the gradients which it gets, and moves nothing.

    Hooks of optimisers run as in a training, so it sees what they put in the place of the rule's gradients.

    Args:
        parameters: the trainable parameters of the net. The trainer adds those of the rule.

    Attributes:
        seen: copies of the gradients of the last step, by the id of the parameter.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self.seen: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep copies of the gradients."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.seen = {id(p): p.grad.detach().clone() for p in parameters if p.grad is not None}


class Bench:
    """A test bench that takes steps of training with the same weights, buffers and random numbers every time.

    Only because all else is equal, a difference between two runs has to come from what was changed. A step is the
    trainer's own: hooks of tensors, modules and optimisers take part.

    Args:
        trainer: bound, with a `Recorder` as its optimiser.
        batch: the batch of every run.

    Attributes:
        layers: the layers of net and rule.
        steps: numbers of the steps that make one run; several for rules that train one block in each step.
        tolerance: the largest relative difference between two gradients that still counts as equal; see `settle`.
        shares_graph: True if two objectives go through the same nodes; a training would then end with an error.
        scalars: the scalars of each step of the last run.
    """

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self.trainer, self.net, self.rule, self.task = trainer, trainer.net, trainer.rule, trainer.task
        self.batch = self._in_order(batch)
        self.layers = Layers(self.net, self.rule)
        self.steps = [STEPS[0]]
        self.tolerance = _ROUNDING
        self.shares_graph = False
        self.scalars: list[Scalars] = []
        self._draw_zero_weights()
        self._state = State(self.net, self.rule)

    def at(self, *, steps: Sequence[int] | None = None, batch: Batch | None = None) -> "Bench":
        """Return a bench for the same net and rule with other steps, or with another batch.

        Args:
            steps: numbers of the steps that make one run; None for those of this bench.
            batch: the batch of every run; None for that of this bench.
        """
        other = copy.copy(self)
        other.steps = list(self.steps if steps is None else steps)
        other.batch = self.batch if batch is None else self._in_order(batch)
        return other

    def bound_by(self, trainer: Trainer) -> "Bench":
        """Return such a bench for another trainer of the same net.

        Args:
            trainer: bound, with a `Recorder` as its optimiser.
        """
        other = Bench(trainer, self.batch)
        other.steps, other.tolerance, other.shares_graph = self.steps, self.tolerance, self.shares_graph
        return other

    def _in_order(self, batch: Batch) -> Batch:
        # As the trainer does it; the trainer then makes no copy, which would count as an activation.
        return batch._replace(x=channels_last(batch.x)) if self.trainer.channels_last else batch

    def _draw_zero_weights(self) -> None:
        """Give random values to weights that are all zero.

        Zero hides dependencies: behind a head that starts at zero, no gradient depends on anything.
        """
        for name, p in self.layers.parameters.items():
            if (p.dim() > 1 or name.endswith("weight")) and not bool(p.detach().any()):
                p.data.copy_(self._random(name, p) * 0.1)

    def settle(self) -> Gradients:
        """Find the steps in which every unit learns, and the tolerance for comparisons.

        Returns:
            The gradients of an unchanged run.

        Raises:
            UnrepeatableError: two equal runs differ by more than rounding, so no conclusion is possible.
        """
        self._first_run()
        grads = self.run()
        in_units = {id(p) for unit in self.rule.units(self.net) for p in unit}
        missing = {name for name, p in self.layers.parameters.items() if id(p) in in_units} - set(grads)
        others = dict.fromkeys((*STEPS[1:], *range(_MOST_STEPS)))
        for step in others if missing else ():
            new = missing & set(self.run(steps=[step]))
            self.steps += [step] if new else []
            missing -= new
            if not missing:
                break
        first, second = self.run(), self.run()
        apart = max((_difference(first.get(name), second.get(name)) for name in first | second), default=0.0)
        if apart > _REPEATABLE:
            raise UnrepeatableError(
                f"rule: two calls of {type(self.rule).__name__} with one key gave different gradients, so nothing can "
                "be distinguished from a third. Draw everything random from `noise`, and keep no count of calls"
            )
        # Kernels that add in a changing order (some on GPUs) differ by rounding; a change has to be clearly larger.
        self.tolerance = max(_ROUNDING, 10 * apart)
        return second

    def _first_run(self) -> None:
        """Run once, so that the rule makes its choices for this shape, and find out if objectives share their graph."""
        try:
            self.run()
        except (RuntimeError, UserError) as error:
            if "backward through the graph a second time" not in str(error):
                raise
            # One objective freed nodes that another needs. Keep the graph, so that all the rest can still be measured.
            self.shares_graph = True
            self.run()

    def run(self, *around: AbstractContextManager[object], steps: Sequence[int] | None = None) -> Gradients:
        """Take steps from the same state, and put the state back.

        Args:
            around: contexts in which the steps are taken, such as changed weights or a watch.
            steps: numbers of the steps; None for `self.steps`.

        Returns:
            Copies of all gradients that are not zero everywhere. Those of several steps add up.
        """
        numbers = self.steps if steps is None else steps
        return sum_of(self.sequence([(number, nullcontext()) for number in numbers], *around))

    def sequence(self, calls: Sequence[Call], *around: AbstractContextManager[object]) -> list[Gradients]:
        """Take steps one after the other, so that each begins with what the rule remembers of those before.

        Args:
            calls: the number and the context of each step.
            around: contexts around all of them.

        Returns:
            The gradients of each step.
        """
        with self.restoring(), ExitStack() as stack:
            for each in around:
                stack.enter_context(each)
            self.scalars = []
            return [self._step(*call) for call in calls]

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """A context that starts torch's generators at a key, and puts the state of net and rule back at its end."""
        key = Noise().fold("certify").global_rng(self.batch.device)
        try:
            with key, torch.enable_grad(), retained() if self.shares_graph else nullcontext():
                yield
        finally:
            self._state.restore()

    def _step(self, number: int, around: AbstractContextManager[object]) -> Gradients:
        """Take one step. A change that the rule makes to a parameter by itself counts as part of its gradient."""
        recorder, parameters = self.trainer.optimizer, self.layers.parameters
        assert isinstance(recorder, Recorder)
        with around:
            before = {name: p.detach().clone() for name, p in parameters.items()}
            self.trainer.progress.step = number
            self.scalars.append(self.trainer.step(self.batch))
            grads = {name: recorder.seen[id(p)] for name, p in parameters.items() if id(p) in recorder.seen}
            for name, p in parameters.items():
                moved = before[name] - p.detach()
                if not bool(moved.any()):
                    continue
                if float(moved.abs().max()) > _MOVED * float(before[name].abs().max()):
                    grads[name] = grads[name] + moved if name in grads else moved
                else:  # a rule that adds noise to weights and subtracts it again leaves a rounding error
                    p.data.copy_(before[name])
        return grads

    def changed(self, before: Gradients, after: Gradients, tolerance: float | None = None) -> set[str]:
        """Return the names of the parameters whose gradients differ between two runs by more than the tolerance.

        Args:
            before: gradients of a run.
            after: gradients of another run.
            tolerance: the largest relative difference that counts as equal; None for that of the bench.
        """
        most = self.tolerance if tolerance is None else tolerance
        return {name for name in before | after if _difference(before.get(name), after.get(name)) > most}

    @contextmanager
    def changed_weights(self, changed: Collection[str], how: str = "noise") -> Iterator[None]:
        """A context in which the weights of some layers are different.

        Args:
            changed: the names of the layers.
            how: "noise" adds noise as large as the weights, "sizes" changes their sizes and keeps their signs.
        """
        weights = [(f"{layer} {i}", w) for layer in changed for i, w in enumerate(self.layers.weights[layer])]
        with _plain():
            before = [w.detach().clone() for _, w in weights]
            for name, w in weights:
                noise = self._random(name, w)
                if how == "noise":
                    w.data.add_(noise * (w.detach().square().mean().sqrt() + 1e-3))
                else:
                    w.data.mul_(0.5 + noise.abs())
        try:
            yield
        finally:
            with _plain():
                for (_, w), saved in zip(weights, before, strict=True):
                    w.data.copy_(saved)

    def _random(self, name: str, like: Tensor) -> Tensor:
        return Noise().fold("certify", name).randn(*like.shape).to(like)


@contextmanager
def _plain() -> Iterator[None]:
    """A context in which tensors change as if no transform of `torch.func` were active, which would forbid it."""
    with torch.no_grad(), torch._C._DisableFuncTorch():
        yield


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    """Return the largest difference of two gradients as a share of the largest element; 1 if only one exists."""
    if a is None or b is None:
        return 0.0 if a is b else 1.0
    difference = float((a.double() - b.double()).abs().max())
    return difference / max(float(a.abs().max()), float(b.abs().max())) if difference else 0.0


def sum_of(steps: Iterable[Gradients]) -> Gradients:
    """Return the sums of the gradients of several steps, without those that are zero everywhere."""
    total: Gradients = {}
    for grads in steps:
        for name, grad in grads.items():
            total[name] = total[name] + grad if name in total else grad
    return {name: grad for name, grad in total.items() if bool(grad.any())}


def layers_with(names: Iterable[str], layers: Layers) -> set[str]:
    """Return the layers of some parameters; normalisations do not count as layers.

    Args:
        names: names of parameters of net and rule.
        layers: the layers of net and rule.
    """
    return {layer for name in names if (layer := layers.of.get(name))}
