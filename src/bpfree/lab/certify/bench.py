"""A test bench: a rule on a net, run again and again from the same state, with one thing changed each time."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.lab.certify.layers import Layers
from bpfree.lab.certify.watch import retained
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.training.divergence import explain_first_step
from bpfree.types import Batch, Scalars, Task

Gradients = dict[str, Tensor]  # by the name of the parameter; parameters without a gradient are missing
_MOST_STEPS = 40  # a rule that trains one of ten blocks at random has trained each by then, with probability 0.86
_ROUNDING = 1e-6  # of the largest element of a gradient
_REPEATABLE = 1e-3  # likewise: two equal runs that differ by more are not repeatable


class Bench:
    """A test bench that calls `rule.gradients` with the same weights, buffers and random numbers every time.

    Only because all else is equal, a difference between two runs has to come from what was changed.

    Args:
        net: any module.
        rule: a rule that is bound to the net.
        task: the task of the rule.
        batch: the batch of every run.

    Attributes:
        layers: the layers of net and rule.
        steps: numbers of the steps that make one run; several for rules that train one block in each step.
        tolerance: the largest relative difference between two gradients that still counts as equal; see `settle`.
        shares_graph: True if two objectives go through the same nodes; a training would then end with an error.
        scalars: the scalars that `gradients` returned last.
    """

    def __init__(self, net: nn.Module, rule: Rule, task: Task, batch: Batch) -> None:
        self.net, self.rule, self.task, self.batch = net, rule, task, batch
        self.layers = Layers(net, rule)
        self.device = batch.device
        self.steps = [0]
        self.tolerance = 0.0
        self.shares_graph = False
        self.scalars: Scalars = {}
        self._draw_zero_weights()
        self._state = State(net, rule)

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
            UserError: two equal runs differ by more than rounding, so no conclusion is possible.
        """
        self._first_run()
        grads = self.run()
        in_units = {id(p) for unit in self.rule.units(self.net) for p in unit}
        missing = {name for name, p in self.layers.parameters.items() if id(p) in in_units} - set(grads)
        for step in range(1, _MOST_STEPS if missing else 0):
            new = missing & set(self.run(steps=[step]))
            self.steps += [step] if new else []
            missing -= new
            if not missing:
                break
        first, second = self.run(), self.run()
        apart = max((_difference(first.get(name), second.get(name)) for name in first | second), default=0.0)
        if apart > _REPEATABLE:
            raise UserError(
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
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                with explain_first_step(self.batch):
                    raise
            # One objective freed nodes that another needs. Keep the graph, so that all the rest can still be measured.
            self.shares_graph = True
            self.run()

    def run(self, *around: AbstractContextManager[object], steps: list[int] | None = None) -> Gradients:
        """Call `rule.gradients` and put the state back.

        Args:
            around: contexts in which the rule runs, such as changed weights or a watch.
            steps: numbers of the steps; None for `self.steps`. Gradients of several steps add up.

        Returns:
            Copies of all gradients that are not zero everywhere.
        """
        with ExitStack() as stack:
            stack.callback(self._state.restore)
            stack.enter_context(Noise().fold("certify").global_rng(self.device))
            stack.enter_context(torch.enable_grad())
            for each in (*around, *([retained()] if self.shares_graph else [])):
                stack.enter_context(each)
            for p in self.layers.parameters.values():
                p.grad = None
            for step in self.steps if steps is None else steps:
                self.scalars = self.rule.gradients(self.net, self.task, self.batch, Noise(0, step))
            grads = {name: p.grad for name, p in self.layers.parameters.items() if p.grad is not None}
            return {name: grad.detach().clone() for name, grad in grads.items() if bool(grad.any())}

    def changed(self, before: Gradients, after: Gradients) -> set[str]:
        """Return the names of the parameters whose gradients differ between two runs by more than the tolerance."""
        return {name for name in before | after if _difference(before.get(name), after.get(name)) > self.tolerance}

    @contextmanager
    def changed_weights(self, layer: str, how: str = "noise") -> Iterator[None]:
        """A context in which the weights of a layer are different.

        Args:
            layer: the name of the layer.
            how: "noise" adds noise as large as the weights, "sizes" changes their sizes and keeps their signs.
        """
        weights = self.layers.weights[layer]
        before = [w.detach().clone() for w in weights]
        for i, w in enumerate(weights):
            noise = self._random(f"{layer} {i}", w)
            if how == "noise":
                w.data.add_(noise * (w.detach().square().mean().sqrt() + 1e-3))
            else:
                w.data.mul_(0.5 + noise.abs())
        try:
            yield
        finally:
            for w, saved in zip(weights, before, strict=True):
                w.data.copy_(saved)

    def _random(self, name: str, like: Tensor) -> Tensor:
        return Noise().fold("certify", name).randn(*like.shape).to(like)


class State:
    """A snapshot of everything in some modules that a run may change; `restore` puts it back to the bit.

    The tensor objects themselves come back too, not only their values: an optimiser holds references to them.

    Args:
        modules: the modules to take a snapshot of, with their submodules.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = [m for module in modules for m in module.modules()]
        named = [(m, slot, name, t) for m in self._modules for slot in _SLOTS for name, t in getattr(m, slot).items()]
        self._tensors = [(m, slot, name, t, t.detach().clone()) for m, slot, name, t in named if t is not None]
        self._grads = [(t, t.grad, None if t.grad is None else t.grad.clone()) for _, _, _, t in named if t is not None]
        self._flags = [(t, t.requires_grad) for _, slot, _, t in named if t is not None and slot == "_parameters"]
        self._modes = [(m, m.training) for m in self._modules]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the snapshot back into the modules."""
        for module, slot, name, tensor, before in self._tensors:
            getattr(module, slot)[name] = tensor  # through the dict: a parametrised module refuses setattr
            tensor.data.copy_(before)
        for tensor, grad, before in self._grads:
            tensor.grad = grad
            if grad is not None:
                grad.copy_(before)
        for tensor, flag in self._flags:
            tensor.requires_grad_(flag)
        for module, mode in self._modes:
            module.training = mode


_SLOTS = ("_parameters", "_buffers")


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    """Return the largest difference of two gradients as a share of the largest element; 1 if only one exists."""
    if a is None or b is None:
        return 0.0 if a is b else 1.0
    difference = float((a.double() - b.double()).abs().max())
    return difference / max(float(a.abs().max()), float(b.abs().max())) if difference else 0.0


def layers_with(names: Iterable[str], layers: Layers) -> set[str]:
    """Return the layers of some parameters; normalisations do not count as layers.

    Args:
        names: names of parameters of net and rule.
        layers: the layers of net and rule.
    """
    return {layer for name in names if (layer := layers.of.get(name))}
