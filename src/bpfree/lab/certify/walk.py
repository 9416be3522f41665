"""A walk over the graph of one objective: which layers a derivative goes through, and where it ends.

The *chain* of an objective is the largest number of weight-carrying layers on a path from it to what it is
differentiated by. A layer is on a path where its weight meets an activation: its weight comes in beside it (as a
parameter, or something made of that parameter alone), or is kept for the way back although it is frozen. An autograd
function of somebody's own that joins a layer's output with its input, as feedback alignment does, counts as that layer.
"""

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bpfree.lab.certify.layers import RULE, Layers, unwrapped

Node = Any  # torch has no name for the nodes of its graph
ACTIVATION, COPY = "*", "copy of "
"""What ends in no parameter: an activation, or a weight of nobody's."""


class Reach(NamedTuple):
    """What one objective is differentiated through, and by.

    Attributes:
        through: layers of the net, and copies of them, that the derivative passes or enters.
        ends: names of the parameters of net and rule that get it, and copies.
        signal: it ends in activations too, so that it may be a teaching signal for something else.
        chain: layers of the net, copies included, on the longest path.
        heads: layers of the rule on the longest path.
    """

    through: frozenset[str]
    ends: frozenset[str]
    signal: bool
    chain: int
    heads: int


class Walk:
    """The graph behind some outputs, in an order in which every node comes after those that it leads to.

    Args:
        outs: where to start.
        layers: whose weights are looked for.
        samples: in the batch; see `samples_to_tell_apart`.
        inputs: what is differentiated by; none for all leaves.
    """

    def __init__(self, outs: Sequence[Tensor], layers: Layers, samples: int, inputs: Sequence[Tensor] = ()) -> None:
        self.layers = layers
        self.samples = samples
        self.roots = [edge.node for edge in map(_edge, outs) if edge is not None]
        self.nodes = _order(self.roots)
        self._sizes = {name: {w.numel() for w in own} for name, own in layers.weights.items()}
        self.below: dict[Node, frozenset[str]] = {}  # owners of the leaves
        for node in self.nodes:
            self.below[node] = frozenset().union(
                self._owner(node.variable) if hasattr(node, "variable") else (), *(self.below[c] for c in _next(node))
            )
        self.met = {node: self._met(node) for node in self.nodes}  # layers that meet an activation there
        self._aim(inputs)

    def _aim(self, inputs: Sequence[Tensor]) -> None:
        if inputs:
            self.targets = {get_gradient_edge(each).node: each for each in inputs}
        else:
            self.targets = {node: node.variable for node in self.nodes if hasattr(node, "variable")}
        self.relevant: set[Node] = set()
        for node in self.nodes:
            if node in self.targets or any(c in self.relevant for c in _next(node)):
                self.relevant.add(node)

    def reach(self) -> Reach:
        """What the walk finds."""
        reached = [self.name(tensor) for node, tensor in self.targets.items() if node in self.relevant]
        ends = frozenset(name for name in reached if name != ACTIVATION)
        passed = frozenset[str]().union(*(self.met[node] for node in self.relevant))
        through = frozenset(name for name in passed if not name.startswith(RULE))
        net, rule = {*self.layers.net, *(n for n in passed if n.startswith(COPY))}, set(self.layers.rule)
        return Reach(through, ends, ACTIVATION in reached, self.longest(net), self.longest(rule))

    def longest(self, counted: Collection[str]) -> int:
        """The largest number of the given layers on a path."""
        known: dict[Node, int] = {}
        for node in self.nodes:
            if node in self.relevant:
                known[node] = self._longest_below(node, known, counted)
        return max((known[root] for root in self.roots if root in known), default=0)

    def _longest_below(self, node: Node, known: dict[Node, int], counted: Collection[str]) -> int:
        if self._is_weight(node):
            return 0
        below = [(c, known[c]) for c in _next(node) if c in self.relevant]
        longest = max((n for _, n in below), default=0) + bool(self._beside(node).intersection(counted))
        for layer, own in self._delivered(node):
            if layer in counted:
                longest = max([longest, *(n + 1 for c, n in below if c is not own)])
        return longest

    def flow(self) -> dict[str, frozenset[str]]:
        """For each layer, those that its input is computed from."""
        passed: dict[Node, frozenset[str]] = {}
        found: dict[str, frozenset[str]] = {}
        for node in self.nodes:
            before = frozenset[str]().union(*(passed[c] for c in _next(node) if not self._is_weight(c)))
            for layer in self.met[node]:
                found[layer] = found.get(layer, frozenset()) | (before - {layer})
            passed[node] = before | self.met[node]
        return found

    def name(self, tensor: Tensor) -> str:
        """Of a parameter; a weight that nobody owns is named by what it looks like a copy of."""
        plain = unwrapped(tensor)
        if (known := self.layers.name_of(plain)) is not None:
            return known
        if plain.grad_fn is not None or plain.dim() == 0 or plain.numel() % self.samples == 0:
            return ACTIVATION
        alike = [name for name, p in self.layers.parameters.items() if p.shape == plain.shape]
        return COPY + (alike[0] if alike else f"a weight of shape {list(plain.shape)}")

    def _owner(self, leaf: Tensor) -> tuple[str, ...]:
        name = self.name(leaf)
        if name == ACTIVATION or name.startswith(COPY):
            return (name,) if leaf.dim() > 1 else ()  # a bias alone is no layer
        layer = self.layers.of.get(name)
        return (layer,) if layer else ()

    def _is_weight(self, node: Node) -> bool:
        """Whether what the node gives is a weight, or made of weights of one layer alone."""
        if len(self.below[node]) != 1:
            return False
        (owner,) = self.below[node]
        if owner.startswith(COPY):
            return hasattr(node, "variable") or type(node).__name__ in ("TBackward0", "ViewBackward0")
        return owner != ACTIVATION and _size(node) in self._sizes.get(owner, ())

    def _beside(self, node: Node) -> frozenset[str]:
        """Layers whose weights come into the node."""
        if self._is_weight(node):
            return frozenset()
        own = [self.below[c] for c in _next(node) if self._is_weight(c)]
        kept = [layer for tensor in _kept(node) if (layer := self.layers.layer_of(tensor)) is not None]
        return frozenset(kept).union(*own)

    def _delivered(self, node: Node) -> list[tuple[str, Node]]:
        """Layers whose output an autograd function of somebody's own takes beside something else, and that output."""
        if not isinstance(node, torch.autograd.function.BackwardCFunction) or len(_next(node)) < 2:
            return []
        single = [(c, self.below[c]) for c in _next(node) if len(self.below[c]) == 1 and not self._is_weight(c)]
        return [(layer, c) for c, (layer,) in single if layer != ACTIVATION]

    def _met(self, node: Node) -> frozenset[str]:
        return self._beside(node).union(layer for layer, _ in self._delivered(node))


def _edge(out: Tensor) -> Any:
    return get_gradient_edge(out) if out.requires_grad else None


def _order(roots: Sequence[Node]) -> list[Node]:
    done: dict[Node, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, ready = stack.pop()
        if ready:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack += [(c, False) for c in _next(node) if c not in done]
    return list(done)


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _size(node: Node) -> int:
    """Elements of what the node gives in the forward pass."""
    if hasattr(node, "variable"):
        return int(node.variable.numel())
    sizes = [prod(meta.shape) for meta in node._input_metadata]
    return sizes[0] if len(sizes) == 1 else -1


_SAVED: dict[type, list[str]] = {}


def _kept(node: Node) -> list[Tensor]:
    """Tensors that the node keeps for the way back."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        names = ["saved_tensors"]
    else:
        names = _SAVED.setdefault(type(node), [name for name in dir(node) if name.startswith("_saved_")])
    try:
        kept = [getattr(node, name) for name in names]
    except RuntimeError:  # freed by an objective before this one
        return []
    flat = [each for value in kept for each in (value if isinstance(value, tuple | list) else (value,))]
    return [tensor for tensor in flat if isinstance(tensor, Tensor)]
