"""The stages of a net as modules that can be copied, with the shapes that they take and give."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from bpfree.grad import detach_input
from bpfree.inputs import Inputs, features_of, forward
from bpfree.local.segments import rehearsal
from bpfree.nets.acceptance import eager


class Stage(NamedTuple):
    """A stage of a net.

    Attributes:
        modules: the names of the modules that run one after the other. They are the children of a Sequential behind the
            stage before; of another net, the one module at whose end it can be cut.
        takes: the shape of its input for one sample.
        gives: the shape of its output for one sample.
        more: True if its first module takes more arguments than the input.
    """

    modules: tuple[str, ...]
    takes: torch.Size
    gives: torch.Size
    more: bool

    def originals(self, net: nn.Module) -> list[nn.Module]:
        """Return the modules of the net."""
        return [net.get_submodule(name) for name in self.modules]


class Stages(NamedTuple):
    """The stages of a net, and where its segments end.

    Attributes:
        stages: in the order in which they run.
        ends: for each tap, how many stages have run when it has run.
        shapes: for each tap, the shape of its output for one sample.
    """

    stages: list[Stage]
    ends: list[int]
    shapes: list[torch.Size]


def stages_of(net: nn.Module, names: Sequence[str], taps: Sequence[str], x: Inputs) -> Stages:
    """Return the stages of a net by one forward pass, which leaves no trace.

    Args:
        net: any module.
        names: the modules at which stages end, in the order in which they run.
        taps: the modules at which segments end; they may be others.
        x: [B, ...], a few samples.
    """
    groups = [_group(net, name, before) for before, name in zip(["", *names[:-1]], names, strict=True)]
    takes: dict[str, tuple[torch.Size, bool]] = {}
    gives: dict[str, torch.Size] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            takes[name] = detach_input(args, kwargs)[0].shape[1:], len(args) + len(kwargs) > 1

        return note

    def behind(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, args: object, out: object) -> None:
            h = features_of(out)
            assert h is not None, "the net was cut here"
            gives[name] = h.shape[1:]

        return note

    # What the first stage takes is not asked: it may be tokens or several inputs, and nobody copies it.
    firsts = [group[0] for group in groups[1:]]
    handles = [
        *(net.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) for name in firsts),
        *(net.get_submodule(name).register_forward_hook(behind(name)) for name in {*names, *taps}),
    ]
    try:
        with rehearsal(net, x), torch.no_grad(), eager():
            forward(net, x)
    finally:
        for handle in handles:
            handle.remove()
    takes |= {group[0]: (torch.Size(), False) for group in groups[:1]}
    stages = [Stage(group, takes[group[0]][0], gives[group[-1]], takes[group[0]][1]) for group in groups]
    ran = list(gives)
    ends = [sum(name in names for name in ran[: ran.index(tap) + 1]) for tap in taps]
    return Stages(stages, ends, [gives[tap] for tap in taps])


def _group(net: nn.Module, name: str, before: str) -> tuple[str, ...]:
    """The names of the modules that run between the end of the stage before and that of a stage."""
    parent, _, child = name.rpartition(".")
    if type(net.get_submodule(parent)).forward is not nn.Sequential.forward:
        return (name,)
    path = f"{parent}." if parent else ""
    children = list(net.get_submodule(parent)._modules)
    children = children[: children.index(child) + 1]
    ended = before.removeprefix(path).partition(".")[0] if before.startswith(path) else ""
    start = children.index(ended) + 1 if ended in children[:-1] else 0
    return tuple(path + each for each in children[start:])
