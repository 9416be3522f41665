"""The behaviour of a net in forward passes, which says what work members can share: state, noise, frozen parts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs, forward, main_input
from bpfree.noise import Noise
from bpfree.population.statistics import learn_state, members, still_modules

# Attributes that are not state of a net: every module has them, or evaluators replace them.
_INTERNAL = frozenset(vars(nn.Module())) | {"forward"}


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of a net in forward passes.

    Attributes:
        learns: True if a pass in training mode changes buffers or attributes, such as running statistics.
        still: modules that stay in evaluation mode in such a pass.
        stateful: modules whose buffers or attributes a member's pass changes. They are put back before each pass.
        draws: True if a member's pass draws random numbers. They are then the same for all members.
        frozen: parts without trainable parameters, whose outputs may be kept for all members of a generation.
    """

    learns: bool = False
    still: tuple[nn.Module, ...] = ()
    stateful: tuple[nn.Module, ...] = ()
    draws: bool = True
    frozen: tuple[nn.Module, ...] = ()


PLAIN = Behaviour()
"""The behaviour that is assumed before a net is studied: random numbers may be drawn, and nothing is shared."""


class State:
    """A copy of the buffers and attributes of modules at one moment.

    Args:
        modules: the modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._saved = [_Saved(module) for module in modules]

    def changed(self) -> tuple[nn.Module, ...]:
        """Return the modules with an attribute or buffer that was replaced or written to since then."""
        return tuple(saved.module for saved in self._saved if saved.changed())

    def put_back(self, only: Sequence[nn.Module] | None = None) -> None:
        """Restore buffers and attributes.

        Args:
            only: the modules to restore. Default: all.
        """
        wanted = None if only is None else {id(module) for module in only}
        for saved in self._saved:
            if wanted is None or id(saved.module) in wanted:
                saved.put_back()


class _Saved:
    """The buffers and attributes of one module.

    Buffers are compared by content, because torch updates some of them without a new version number. Other tensors are
    compared by their version number, which is much cheaper.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = _attributes(module)
        self.buffers = dict(module._buffers)
        self.contents = [(b, b.clone()) for b in self.buffers.values() if b is not None]
        # Inference tensors have no version number; torch raises an error if it is read.
        self.tensors = {
            name: (t._version, t.detach().clone())
            for name, t in self.attributes.items()
            if isinstance(t, Tensor) and not t.is_inference()
        }

    def changed(self) -> bool:
        return (
            _others(self.attributes, _attributes(self.module))
            or _others(self.buffers, self.module._buffers)
            or any(self.attributes[name]._version != version for name, (version, _) in self.tensors.items())
            or any(not torch.equal(buffer, content) for buffer, content in self.contents)
        )

    @torch.no_grad()
    def put_back(self) -> None:
        # Not by setattr: `nn.Module.__setattr__` would register values that are parameters or modules.
        own = vars(self.module)
        for name in _attributes(self.module).keys() - self.attributes.keys():
            del own[name]
        own.update(self.attributes)
        self.module._buffers.update(self.buffers)
        for buffer, content in self.contents:
            buffer.copy_(content)
        for name, (version, content) in self.tensors.items():
            tensor = self.attributes[name]
            # Only if it was written to. Otherwise it may be a view of a parameter, which evaluators change via .data.
            if tensor._version != version:
                tensor.copy_(content)
                self.tensors[name] = (tensor._version, content)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _INTERNAL}


def _others(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return before.keys() != now.keys() or any(value is not now[name] for name, value in before.items())


@torch.no_grad()
def study(net: nn.Module, x: Inputs, noise: Noise) -> Behaviour:
    """Find out how a net behaves by running it a few times. The net is not changed.

    Args:
        net: the net.
        x: the minibatch.
        noise: any key.

    Returns:
        The behaviour, without frozen parts; `choose_frozen` adds them.

    Raises:
        UserError: a second call from the same state with the same random numbers gives another output.
    """
    every = list(net.modules())
    device = main_input(x).device
    still = still_modules(net)
    with members(net):
        start = State(every)
        first, draws = _run(net, x, noise, device)
        warm = State(every)
        again, _ = _run(net, x, noise, device)
        stateful = warm.changed()  # a change in the first pass alone is a cache that the net fills once
        start.put_back(stateful)
        if not _alike(first, again):  # perhaps only because of the state, which is put back now
            again, _ = _run(net, x, noise, device)
            start.put_back(stateful)
    if not _alike(first, again):
        raise UserError(
            "net: the same input gave two outputs, so the members of a population cannot be compared. Allowed: a net "
            "whose output depends on its parameters, buffers, attributes, input and torch's random numbers. Reset its "
            "other state, and draw numbers by torch, at the start of forward"
        )
    # Learning runs last and is undone: a changed state must not reach the passes that are compared above.
    before = State(every)
    learn_state(net, x, noise, still)
    learns = bool(before.changed())
    before.put_back()
    return Behaviour(learns, still, stateful, draws)


def _run(net: nn.Module, x: Inputs, noise: Noise, device: torch.device) -> tuple[Tensor, bool]:
    """The output, and True if the pass drew random numbers."""
    with noise.global_rng(device), noise.watched(device) as draws:
        # A copy: the net may return one of its buffers, and the next pass would overwrite it.
        out = forward(net, x).clone()
        return out, draws()


# The tolerances are loose, because some kernels of a GPU add numbers in an order that varies from call to call.
def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def choose_frozen(net: nn.Module, behaviour: Behaviour, outputs: Callable[[Behaviour], Tensor]) -> Behaviour:
    """Add the frozen parts that may run once for all members.

    Args:
        net: the net.
        behaviour: the behaviour of the net, from `study`.
        outputs: a function from a behaviour to the outputs [P, B, ...] of some members, which run one after the other
            and keep the behaviour's frozen parts.

    Returns:
        The behaviour with all parts whose outputs can be kept without changing one bit of the net's outputs.
    """
    holding = {id(module) for module in behaviour.stateful}
    parts = [part for part in frozen_parts(net) if not any(id(m) in holding for m in part.modules())]
    if not parts:
        return behaviour
    expected = outputs(behaviour)

    def same(kept: Sequence[nn.Module]) -> bool:
        out = outputs(replace(behaviour, frozen=tuple(kept)))
        # Tolerances of 0 and not torch.equal, for which NaN differs from NaN.
        return out.shape == expected.shape and torch.allclose(out, expected, rtol=0, atol=0, equal_nan=True)

    if not same(parts):  # try them one by one only where all together fail, which is rare
        kept: list[nn.Module] = []
        for part in parts:
            if same([*kept, part]):
                kept.append(part)
        parts = kept
    return replace(behaviour, frozen=tuple(parts))


def frozen_parts(net: nn.Module) -> list[nn.Module]:
    """Return the largest submodules without trainable parameters; none if nothing of the net is frozen.

    Args:
        net: the net.
    """
    if all(p.requires_grad for p in net.parameters()):
        return []
    return list(_largest_frozen(net))


def _largest_frozen(module: nn.Module) -> Iterator[nn.Module]:
    if not any(p.requires_grad for p in module.parameters()):
        # A part with a replaced `forward` is left out: `parts_run_once` calls the method of the class, and at the end
        # it would delete the replacement.
        if "forward" not in vars(module):
            yield module
        return
    for child in module.children():
        yield from _largest_frozen(child)
