"""The layers of a net and of a rule: whose weight is whose, and which layers are trained together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bpfree.local.cut import owners
from bpfree.local.rule import LocalRule
from bpfree.rule import Rule
from bpfree.types import Batch

RULE = "rule."
"""Begins the names of what belongs to the rule."""

_NORMS = ("batchnorm", "normalization", "instancenorm")
_MOST = 16  # samples that are plenty to tell what depends on what


class Layers:
    """Every weight of a net and its rule by the layer that carries it.

    A layer is a module with parameters of two dimensions or more, normalisations left out; its bias is part of it. A
    module of one's own with several weights is as many layers.

    Attributes:
        net: names of the net's layers, in order of definition.
        rule: names of the rule's, each beginning with "rule.".
        weights: the weights of each layer.
        of: the layer of a parameter by name; a normalisation's have none.
        parameters: every parameter by name.
    """

    def __init__(self, net: nn.Module, rule: nn.Module) -> None:
        self.weights: dict[str, list[nn.Parameter]] = {}
        self.of: dict[str, str] = {}
        self.modules: dict[nn.Module, list[str]] = {}
        self._add("", net)
        self.net = tuple(self.weights)
        self._add(RULE, rule)
        self.rule = tuple(self.weights)[len(self.net) :]
        named = [(prefix, part) for prefix, part in (("", net), (RULE, rule))]
        self.parameters = {prefix + name: p for prefix, part in named for name, p in part.named_parameters()}
        self._by_address = {p.data_ptr(): name for name, p in self.parameters.items() if p.numel()}

    def _add(self, prefix: str, root: nn.Module) -> None:
        seen = {id(w) for own in self.weights.values() for w in own}
        for path, module in root.named_modules():
            own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) not in seen}
            weights = [name for name, p in own.items() if p.dim() > 1]
            if not weights or type(module).__module__.rpartition(".")[2] in _NORMS:
                continue
            seen.update(id(p) for p in own.values())
            path = prefix + path
            layer = path.partition(".parametrizations.")[0].rstrip(".")
            apart = len(weights) > 1 and not type(module).__module__.startswith("torch.nn")
            for name, p in own.items():
                key = f"{path}.{name}".lstrip(".").replace("..", ".")
                home = (key if name in weights else "") if apart else layer or key
                self.of[key] = home
                if name in weights:
                    self.weights.setdefault(home, []).append(p)
                    self.modules.setdefault(module, []).append(home)

    def name_of(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or is a view of from its beginning; None if it is none."""
        plain = unwrapped(tensor)
        return self._by_address.get(plain.data_ptr()) if plain.numel() else None

    def layer_of(self, tensor: Tensor) -> str | None:
        """The layer whose weight a tensor is, if it is one."""
        name = self.name_of(tensor)
        return self.of.get(name) or None if name and self.parameters[name].dim() > 1 else None


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor within the wrappers that `torch.func` puts around it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work, in which tensors are wrapped."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_rules(layer: str) -> bool:
    """Whether it belongs to the rule and not to the net."""
    return layer.startswith(RULE)


def samples_to_tell_apart(layers: Layers, batch: Batch) -> Batch:
    """The first samples of a batch, so many that no parameter could be taken for an activation by its size.

    The size of an activation is a multiple of the number of samples; that of no parameter is to be.
    """
    sizes = [p.numel() for p in layers.parameters.values()]
    most = min(len(batch.y), _MOST)
    found = [n for n in range(most, 1, -1) if all(size % n for size in sizes)]
    size = found[0] if found else most
    return batch.first(size)


def find_parts(net: nn.Module, rule: Rule, layers: Layers, batch: Batch) -> dict[str, tuple[str, ...]]:
    """Names of the net's parameters that the rule trains together, by the name of the part.

    A local rule has its segments; another, its units; one that promises nothing below the net has each layer by itself.
    """
    with all_trainable(net):
        if isinstance(rule, LocalRule):
            found = {s.name: s.parameters for s in owners(net, rule.taps, batch.first(2).x)}
        elif rule.locality().through == "part":
            found = _units(net, rule)
        else:
            found = {layer: tuple(name for name, home in layers.of.items() if home == layer) for layer in layers.net}
    covered = {layers.of.get(name) for names in found.values() for name in names}
    for layer in layers.net:
        if layer not in covered:
            found[layer] = tuple(name for name, home in layers.of.items() if home == layer)
    return {name: names for name, names in found.items() if any(layers.of.get(each) for each in names)}


def _units(net: nn.Module, rule: Rule) -> dict[str, tuple[str, ...]]:
    names = {id(p): name for name, p in net.named_parameters()}
    units = [tuple(names[id(p)] for p in unit if id(p) in names) for unit in rule.units(net)]
    return {_title(net, unit): unit for unit in units if unit}


def _title(net: nn.Module, names: Sequence[str]) -> str:
    """Of a part with these parameters: the submodules that hold them."""
    homes: dict[str, None] = {}
    for name in names:
        steps = name.split(".")
        depth = 2 if isinstance(getattr(net, steps[0], None), nn.ModuleList) and len(steps) > 2 else 1
        homes[".".join(steps[:depth])] = None
    found = list(homes)
    if len(found) == 1:
        within = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))
        return within[0] if _is_piece(net, found[0], names) and len(within) < 3 else found[0]
    return "+".join(found) if len(found) < 4 else f"{found[0]}..{found[-1]}"


def _is_piece(net: nn.Module, home: str, names: Sequence[str]) -> bool:
    """Whether the submodule holds more than these."""
    return sum(name.startswith(f"{home}.") for name, _ in net.named_parameters()) > len(names)


def layers_of(parts: Mapping[str, Sequence[str]], layers: Layers) -> dict[str, str]:
    """The part of each layer of the net."""
    homes = {name: part for part, names in parts.items() for name in names}
    return {layers.of[name]: homes[name] for name in homes if layers.of.get(name)}


@contextmanager
def all_trainable(net: nn.Module) -> Iterator[None]:
    """Frozen parameters take part within, so that they too belong somewhere."""
    frozen = [p for p in net.parameters() if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
