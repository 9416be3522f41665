"""What has to be known of a net before members can share work: its state, its noise and its frozen parts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs, forward, main_input
from bpfree.noise import Noise, drawn_since, generator_states
from bpfree.population.statistics import learn_state, members, still_modules

_INTERNAL = frozenset(vars(nn.Module())) | {"forward"}  # what every module has, and what evaluators replace


@dataclass(frozen=True)
class Behaviour:
    """How a net behaves in forward passes.

    Attributes:
        learns: a pass in training mode changes buffers or attributes, such as running statistics.
        still: modules that stay in evaluation mode in such a pass.
        stateful: modules whose buffers or attributes the pass of a member changes; they are put back before each.
        draws: the pass of a member draws random numbers, which are then the same for all members.
        frozen: parts without trainable parameters whose outputs may be kept for all members of a generation.
    """

    learns: bool = False
    still: tuple[nn.Module, ...] = ()
    stateful: tuple[nn.Module, ...] = ()
    draws: bool = True
    frozen: tuple[nn.Module, ...] = ()


PLAIN = Behaviour()


class State:
    """Buffers and attributes of modules at one moment.

    Args:
        modules: whose.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._saved = [_Saved(module) for module in modules]

    def changed(self) -> tuple[nn.Module, ...]:
        """The modules of which an attribute or a buffer is another one now, or was written to."""
        return tuple(saved.module for saved in self._saved if saved.changed())

    def put_back(self, only: Sequence[nn.Module] | None = None) -> None:
        """Make them what they were, of all modules or of some."""
        wanted = None if only is None else {id(module) for module in only}
        for saved in self._saved:
            if wanted is None or id(saved.module) in wanted:
                saved.put_back()


class _Saved:
    """Buffers and attributes of one module. Buffers are compared by content: torch may update them unseen."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = _attributes(module)
        self.buffers = dict(module._buffers)
        self.contents = [(b, b.clone()) for b in self.buffers.values() if b is not None]
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
        own = vars(self.module)
        for name in _attributes(self.module).keys() - self.attributes.keys():
            del own[name]
        own.update(self.attributes)
        self.module._buffers.update(self.buffers)
        for buffer, content in self.contents:
            buffer.copy_(content)
        for name, (version, content) in self.tensors.items():
            tensor = self.attributes[name]
            if tensor._version != version:  # else it may be a view of a parameter, which members change
                tensor.copy_(content)
                self.tensors[name] = (tensor._version, content)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _INTERNAL}


def _others(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return before.keys() != now.keys() or any(value is not now[name] for name, value in before.items())


@torch.no_grad()
def study(net: nn.Module, x: Inputs, noise: Noise) -> Behaviour:
    """Find out how a net behaves; it is left as it was. Frozen parts are left to `choose_frozen`.

    Args:
        net, x: the net, and what a member runs on.
        noise: any key.

    Raises:
        UserError: the net gives another output when it is called once more, from the same state and random numbers.
    """
    every = list(net.modules())
    device = main_input(x).device
    still = still_modules(net)
    with members(net):
        start = State(every)
        first, draws = _run(net, x, noise, device)
        warm = State(every)
        again, _ = _run(net, x, noise, device)
        stateful = warm.changed()  # what changed only in the first pass was made once and for all
        start.put_back(stateful)
        if not _alike(first, again):
            again, _ = _run(net, x, noise, device)
            start.put_back(stateful)
    if not _alike(first, again):
        raise UserError(
            "net: the same input gave two outputs, so the members of a population cannot be compared. Allowed: a net "
            "whose output depends on its parameters, buffers, attributes, input and torch's random numbers. Reset its "
            "other state, and draw numbers by torch, at the start of forward"
        )
    before = State(every)
    learn_state(net, x, noise, still)
    learns = bool(before.changed())
    before.put_back()
    return Behaviour(learns, still, stateful, draws)


def _run(net: nn.Module, x: Inputs, noise: Noise, device: torch.device) -> tuple[Tensor, bool]:
    """The output, and whether random numbers were drawn."""
    with noise.global_rng(device):
        states = generator_states(device)
        out = forward(net, x).clone()
        return out, drawn_since(states, device)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def choose_frozen(net: nn.Module, behaviour: Behaviour, outputs: Callable[[Behaviour], Tensor]) -> Behaviour:
    """Add the frozen parts that may run once for all members.

    Args:
        net: the net.
        behaviour: what `study` found.
        outputs: the outputs [P, B, ...] of some members, run one after the other with these parts kept.

    Returns:
        The behaviour with all parts that keep the outputs the same to the bit.
    """
    holding = {id(module) for module in behaviour.stateful}
    parts = [part for part in frozen_parts(net) if not any(id(m) in holding for m in part.modules())]
    if not parts:
        return behaviour
    expected = outputs(behaviour)

    def same(kept: Sequence[nn.Module]) -> bool:
        found = outputs(replace(behaviour, frozen=tuple(kept)))
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)

    if not same(parts):
        kept: list[nn.Module] = []
        for part in parts:
            if same([*kept, part]):
                kept.append(part)
        parts = kept
    return replace(behaviour, frozen=tuple(parts))


def frozen_parts(net: nn.Module) -> list[nn.Module]:
    """The largest submodules without trainable parameters, in a net of which something is frozen."""
    if all(p.requires_grad for p in net.parameters()):
        return []
    return list(_largest_frozen(net))


def _largest_frozen(module: nn.Module) -> Iterator[nn.Module]:
    if not any(p.requires_grad for p in module.parameters()):
        if "forward" not in vars(module):
            yield module
        return
    for child in module.children():
        yield from _largest_frozen(child)
