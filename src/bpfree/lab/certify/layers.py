"""The layers of a net and of a rule: the owner of each weight, and the parts that are trained together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bpfree.local.rule import LocalRule
from bpfree.local.segments import owners
from bpfree.rule import Rule
from bpfree.types import Batch

RULE = "rule."
"""The prefix of the names of the rule's layers and parameters."""

_NORMS = ("batchnorm", "normalization", "instancenorm")
_MOST = 16  # samples are enough to see what depends on what; more would only take longer


class Layers:
    """The layers of a net and its rule, with the weights that each carries.

    A layer is a module with a parameter of two dimensions or more; its bias belongs to it. Normalisations are not
    layers. A user's module with several weights counts as one layer for each weight, since nobody knows in which order
    it uses them; a module of `torch.nn` with several (a recurrent cell, attention) is one layer.

    Args:
        net: the net.
        rule: the rule; its own layers are heads, read-outs and embeddings.

    Attributes:
        net: names of the net's layers, in order of definition.
        rule: names of the rule's layers; each begins with "rule.".
        weights: the weights of each layer.
        of: the layer of each parameter, by the parameter's name; parameters of normalisations are missing.
        modules: the layers of each module that has any.
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
        """Return the name of the parameter whose memory the tensor begins at; None if there is none.

        The address tells, and not the object: a view or a detached parameter is another object with the same memory.
        """
        plain = unwrapped(tensor)
        return self._by_address.get(plain.data_ptr()) if plain.numel() else None

    def layer_of(self, tensor: Tensor) -> str | None:
        """Return the layer whose weight the tensor is; None if it is not a weight."""
        name = self.name_of(tensor)
        return self.of.get(name) or None if name and self.parameters[name].dim() > 1 else None


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers that transforms of `torch.func` put around it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_transformed() -> bool:
    """Return True within a transform of `torch.func`, in which tensors are wrapped."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def belongs_to_rule(layer: str) -> bool:
    """Return True if a layer belongs to the rule and not to the net."""
    return layer.startswith(RULE)


def samples_to_tell_apart(layers: Layers, batch: Batch, most: int = _MOST) -> Batch:
    """Return the first samples of a batch, so many that no parameter can be mistaken for an activation.

    The size of an activation is a multiple of the number of samples. So the number is chosen such that it divides the
    size of no parameter. If every number does, the largest is taken.

    Args:
        layers: the layers of net and rule.
        batch: x [B, ...] and y [B].
        most: the largest number of samples.
    """
    sizes = [p.numel() for p in layers.parameters.values()]
    most = min(len(batch.y), most)
    suitable = [n for n in range(most, 1, -1) if all(size % n for size in sizes)]
    return batch.first(suitable[0] if suitable else most)


def find_parts(net: nn.Module, rule: Rule, layers: Layers, batch: Batch) -> dict[str, tuple[str, ...]]:
    """Return the parts of the net: the names of the parameters that are trained together, by the name of the part.

    The parts of a local rule are its segments. Those of another rule that declares `through: part` are its units. For a
    rule that declares no more than backprop does, each layer is a part. So it is where there would be one part only:
    backprop goes through this part too, and a part that is the whole net would hide it.

    Args:
        net: the net.
        rule: a rule that is bound to the net.
        layers: the layers of net and rule.
        batch: any batch; two samples go through the net.
    """
    with all_trainable(net):
        if isinstance(rule, LocalRule):
            parts = {s.name: s.parameters for s in owners(net, rule.taps, batch.first(2).x)}
        else:
            parts = _units(net, rule) if rule.locality().through == "part" else {}
    if len(parts) < 2:
        parts = {layer: _parameters_of(layer, layers) for layer in layers.net}
    covered = {layers.of.get(name) for names in parts.values() for name in names}
    for layer in layers.net:
        if layer not in covered:  # the rule does not train it; it may still be waited for
            parts[layer] = _parameters_of(layer, layers)
    return {name: names for name, names in parts.items() if any(layers.of.get(each) for each in names)}


def _parameters_of(layer: str, layers: Layers) -> tuple[str, ...]:
    return tuple(name for name, home in layers.of.items() if home == layer)


def _units(net: nn.Module, rule: Rule) -> dict[str, tuple[str, ...]]:
    names = {id(p): name for name, p in net.named_parameters()}
    units = [tuple(names[id(p)] for p in unit if id(p) in names) for unit in rule.units(net)]
    return {_title(net, unit): unit for unit in units if unit}


def _title(net: nn.Module, names: Sequence[str]) -> str:
    """Return a name for the part with these parameters: the submodules that hold them."""
    homes: dict[str, None] = {}
    for name in names:
        steps = name.split(".")
        depth = 2 if isinstance(getattr(net, steps[0], None), nn.ModuleList) and len(steps) > 2 else 1
        homes[".".join(steps[:depth])] = None
    titles = list(homes)
    if len(titles) == 1:
        inner = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))
        return inner[0] if _is_piece(net, titles[0], names) and len(inner) < 3 else titles[0]
    return "+".join(titles) if len(titles) < 4 else f"{titles[0]}..{titles[-1]}"


def _is_piece(net: nn.Module, home: str, names: Sequence[str]) -> bool:
    """Return True if a submodule has more parameters than these, so that its name would promise too much."""
    return sum(name.startswith(f"{home}.") for name, _ in net.named_parameters()) > len(names)


def part_of_each_layer(parts: Mapping[str, Sequence[str]], layers: Layers) -> dict[str, str]:
    """Return the part of each layer of the net, by the layer's name.

    Args:
        parts: names of parameters by part, as `find_parts` returns them.
        layers: the layers of net and rule.
    """
    homes = {name: part for part, names in parts.items() for name in names}
    return {layers.of[name]: homes[name] for name in homes if layers.of.get(name)}


@contextmanager
def all_trainable(net: nn.Module) -> Iterator[None]:
    """A context in which frozen parameters require gradients too, so that the graph shows them."""
    frozen = [p for p in net.parameters() if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
