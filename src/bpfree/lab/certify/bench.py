"""A rule on a net, run again and again from the same state, with something else changed each time."""

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

Gradients = dict[str, Tensor]
_TRIES = 40  # steps in which every part of a rule that trains some at random has had its turn, most likely
_ROUNDING = 1e-6  # of the largest element of a gradient


class Bench:
    """Runs `rule.gradients` on a net, from the same weights, buffers and random state every time.

    Args:
        net: any module.
        rule: bound to it.
        task: of the rule.
        batch: of every run.
    """

    def __init__(self, net: nn.Module, rule: Rule, task: Task, batch: Batch) -> None:
        self.net, self.rule, self.task, self.batch = net, rule, task, batch
        self.layers = Layers(net, rule)
        self.device = batch.device
        self.steps = [0]
        self.tolerance = 0.0
        self.shares_graph = False  # so that a training would end with an error
        self.scalars: Scalars = {}
        self._wake()
        self._state = State(net, rule)

    def _wake(self) -> None:
        """Weights that are zero as yet would hide what depends on them."""
        for name, p in self.layers.parameters.items():
            if (p.dim() > 1 or name.endswith("weight")) and not bool(p.detach().any()):
                p.data.copy_(self._random(name, p) * 0.1)

    def settle(self) -> Gradients:
        """Find the steps in which everything learns, and how far two equal runs differ.

        Raises:
            UserError: they differ by more than rounding.
        """
        self._first_run()
        got = self.run()
        wanted = {id(p) for unit in self.rule.units(self.net) for p in unit}
        missing = {name for name, p in self.layers.parameters.items() if id(p) in wanted} - set(got)
        for step in range(1, _TRIES if missing else 0):
            found = missing & set(self.run(steps=[step]))
            self.steps += [step] if found else []
            missing -= found
            if not missing:
                break
        first, second = self.run(), self.run()
        apart = max((_apart(first.get(name), second.get(name)) for name in first | second), default=0.0)
        if apart > 1e-3:
            raise UserError(
                f"rule: two calls of {type(self.rule).__name__} with one key gave different gradients, so nothing can "
                "be told from a third. Draw everything random from `noise`, and keep no count of calls"
            )
        self.tolerance = max(_ROUNDING, 10 * apart)
        return second

    def _first_run(self) -> None:
        """In which a rule may choose how to go on, and a graph may prove to be shared by objectives that free it."""
        try:
            self.run()
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                with explain_first_step(self.batch):
                    raise
            self.shares_graph = True
            self.run()

    def run(self, *around: AbstractContextManager[object], steps: list[int] | None = None) -> Gradients:
        """Copies of all gradients by name, those that are zero left out; the state is then as before."""
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
        """Names of the parameters whose gradients differ."""
        return {name for name in before | after if _apart(before.get(name), after.get(name)) > self.tolerance}

    @contextmanager
    def other(self, layer: str, how: str = "noise") -> Iterator[None]:
        """The weights of a layer are others within.

        Args:
            layer: its name.
            how: "noise" as large as they are is added, their "signs" are flipped at random, or their "sizes" change.
        """
        weights = self.layers.weights[layer]
        before = [w.detach().clone() for w in weights]
        for i, w in enumerate(weights):
            drawn = self._random(f"{layer} {i}", w)
            if how == "noise":
                w.data.add_(drawn * (w.detach().square().mean().sqrt() + 1e-3))
            else:
                w.data.mul_(drawn.sign() if how == "signs" else 0.5 + drawn.abs())
        try:
            yield
        finally:
            for w, saved in zip(weights, before, strict=True):
                w.data.copy_(saved)

    def _random(self, name: str, like: Tensor) -> Tensor:
        return Noise().fold("certify", name).randn(*like.shape).to(like)


class State:
    """All that a run may change in a net and a rule, to be put back to the bit."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = [m for module in modules for m in module.modules()]
        named = [(m, slot, name, t) for m in self._modules for slot in _SLOTS for name, t in getattr(m, slot).items()]
        self._tensors = [(m, slot, name, t, t.detach().clone()) for m, slot, name, t in named if t is not None]
        self._grads = [(t, t.grad, None if t.grad is None else t.grad.clone()) for _, _, _, t in named if t is not None]
        self._flags = [(t, t.requires_grad) for _, slot, _, t in named if t is not None and slot == "_parameters"]
        self._modes = [(m, m.training) for m in self._modules]

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        for module, slot, name, tensor, before in self._tensors:
            getattr(module, slot)[name] = tensor
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


def _apart(a: Tensor | None, b: Tensor | None) -> float:
    """How far two gradients differ, as a share of the larger; infinity if one is not finite where the other is."""
    if a is None or b is None:
        return 0.0 if a is b else 1.0
    difference = float((a.double() - b.double()).abs().max())
    return difference / max(float(a.abs().max()), float(b.abs().max())) if difference else 0.0


def by_layer(names: Iterable[str], layers: Layers) -> set[str]:
    """The layers of these parameters, a normalisation's left out."""
    return {layer for name in names if (layer := layers.of.get(name))}
