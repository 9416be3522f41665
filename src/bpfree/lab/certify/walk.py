"""A walk over the autograd graph of one objective: the layers that its derivative goes through, and its ends.

The *chain* of an objective is the largest number of weight-carrying layers on one path from the objective to something
that it is differentiated by. A layer is on a path where its weight meets an activation, in one of three ways:

- The weight, or a tensor computed from it alone, is an input of the node beside the activation.
- The node keeps the weight for the backward pass although the weight is frozen, so that no edge leads to it.
- A custom autograd function joins the layer's output with the layer's input, as feedback alignment does. The layer's
  own path ends there, and the derivative continues by the function's other input.

The walk reads the graph and not the modules, so it sees functional calls, copies of the net and frozen layers too.
"""

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bpfree.lab.certify.layers import RULE, Layers, unwrapped

Node = Any  # torch's typing has no class for the nodes of an autograd graph
ACTIVATION = "*"  # the owner of a leaf that is an activation, such as the detached input of a segment
COPY = "copy of "  # begins the owner of a leaf that is a weight, but belongs neither to the net nor to the rule


class Reach(NamedTuple):
    """The layers that one objective is differentiated through, and the parameters that get its derivative.

    Attributes:
        through: layers of the net, and copies of them, that the derivative passes or enters.
        ends: names of the parameters of net and rule that get the derivative, and names of copies.
        signal: True if activations get the derivative too. It may then teach something else.
        chain: layers of the net, copies included, on the longest path.
        heads: layers of the rule on the longest path.
    """

    through: frozenset[str]
    ends: frozenset[str]
    signal: bool
    chain: int
    heads: int


class Walk:
    """The autograd graph behind some outputs.

    The nodes are sorted so that each comes after the nodes that it leads to. So every property below is computed in
    one pass, without recursion: deep nets would exceed Python's limit.

    Args:
        outs: the tensors that are differentiated.
        layers: the layers whose weights are looked for.
        samples: number of samples in the batch; see `samples_to_tell_apart`.
        inputs: the tensors that `outs` are differentiated by; empty for all leaves.

    Attributes:
        nodes: all nodes of the graph, sorted.
        owners: for each node, the owners of the leaves that it is computed from: layers, ACTIVATION or copies.
        met: for each node, the layers whose weights meet an activation there.
        targets: the nodes of `inputs` (or of all leaves), with their tensors.
        relevant: the nodes on a path to a target. The derivative goes through these only.
    """

    def __init__(self, outs: Sequence[Tensor], layers: Layers, samples: int, inputs: Sequence[Tensor] = ()) -> None:
        self.layers = layers
        self.samples = samples
        self.roots = [edge.node for edge in map(_edge, outs) if edge is not None]
        self.nodes = _sorted_nodes(self.roots)
        self._sizes = {name: {w.numel() for w in weights} for name, weights in layers.weights.items()}
        self.owners: dict[Node, frozenset[str]] = {}
        for node in self.nodes:
            self.owners[node] = frozenset().union(
                self._owner(node.variable) if _is_leaf(node) else (), *(self.owners[c] for c in _next(node))
            )
        self.met = {node: self._met(node) for node in self.nodes}
        self._find_relevant(inputs)

    def _find_relevant(self, inputs: Sequence[Tensor]) -> None:
        if inputs:
            self.targets = {get_gradient_edge(each).node: each for each in inputs}
        else:
            self.targets = {node: node.variable for node in self.nodes if _is_leaf(node)}
        self.relevant: set[Node] = set()
        for node in self.nodes:
            if node in self.targets or any(c in self.relevant for c in _next(node)):
                self.relevant.add(node)

    def reach(self) -> Reach:
        """Return the layers that the derivative goes through, and the parameters that get it."""
        reached = [self.name(tensor) for node, tensor in self.targets.items() if node in self.relevant]
        ends = frozenset(name for name in reached if name != ACTIVATION)
        passed = frozenset[str]().union(*(self.met[node] for node in self.relevant))
        through = frozenset(name for name in passed if not name.startswith(RULE))
        # A copy of a layer of the net counts as a layer of the net: backprop on a hidden copy is backprop.
        net, rule = {*self.layers.net, *(n for n in passed if n.startswith(COPY))}, set(self.layers.rule)
        return Reach(through, ends, ACTIVATION in reached, self.longest(net), self.longest(rule))

    def longest(self, counted: Collection[str]) -> int:
        """Return the largest number of the given layers on one path from an output to a target."""
        lengths: dict[Node, int] = {}  # of the longest path from a node down to a target
        for node in self.nodes:
            if node in self.relevant:
                lengths[node] = self._longest_from(node, lengths, counted)
        return max((lengths[root] for root in self.roots if root in lengths), default=0)

    def _longest_from(self, node: Node, lengths: dict[Node, int], counted: Collection[str]) -> int:
        if self._is_weight(node):
            return 0  # the layer counts at the node where this weight meets an activation, and only once
        below = [(c, lengths[c]) for c in _next(node) if c in self.relevant]
        longest = max((n for _, n in below), default=0) + bool(self._weights_at(node).intersection(counted))
        for layer, output in self._joined_outputs(node):
            if layer in counted:
                # The function stands for the layer. The path through the layer's real output has counted the layer
                # already; every other path gets one more.
                longest = max([longest, *(n + 1 for c, n in below if c is not output)])
        return longest

    def layers_before(self) -> dict[str, frozenset[str]]:
        """Return, for each layer, the layers that its input is computed from."""
        passed: dict[Node, frozenset[str]] = {}  # layers that a node's value has gone through
        before: dict[str, frozenset[str]] = {}
        for node in self.nodes:
            behind = frozenset[str]().union(*(passed[c] for c in _next(node) if not self._is_weight(c)))
            for layer in self.met[node]:
                before[layer] = before.get(layer, frozenset()) | (behind - {layer})
            passed[node] = behind | self.met[node]
        return before

    def name(self, tensor: Tensor) -> str:
        """Return the name of a leaf: a parameter's name, ACTIVATION, or COPY and the parameter that it resembles.

        A leaf that is not a parameter is an activation if its size is a multiple of the number of samples.
        `samples_to_tell_apart` chooses that number so that it divides the size of no parameter. A leaf of any other
        size must be a weight, and since it belongs to nobody, a copy.
        """
        plain = unwrapped(tensor)
        if (name := self.layers.name_of(plain)) is not None:
            return name
        if plain.grad_fn is not None or plain.dim() == 0 or plain.numel() % self.samples == 0:
            return ACTIVATION
        alike = [name for name, p in self.layers.parameters.items() if p.shape == plain.shape]
        return COPY + (alike[0] if alike else f"a weight of shape {list(plain.shape)}")

    def _owner(self, leaf: Tensor) -> tuple[str, ...]:
        name = self.name(leaf)
        if name == ACTIVATION or name.startswith(COPY):
            return (name,) if leaf.dim() > 1 else ()  # a copied bias does not make a layer
        layer = self.layers.of.get(name)
        return (layer,) if layer else ()

    def _is_weight(self, node: Node) -> bool:
        """Return True if the node's value is a weight, or is computed from the weights of one layer only.

        Such a value must also have the size of a weight: a transposed weight and one under weight norm have it, but a
        bias, or the norm of the weights in a loss, does not.
        """
        if len(self.owners[node]) != 1:
            return False
        (owner,) = self.owners[node]
        if owner.startswith(COPY):  # the sizes of its layer are unknown, so only plain views count
            return _is_leaf(node) or type(node).__name__ in ("TBackward0", "ViewBackward0")
        return owner != ACTIVATION and _size(node) in self._sizes.get(owner, ())

    def _weights_at(self, node: Node) -> frozenset[str]:
        """Return the layers whose weights come into the node beside an activation."""
        if self._is_weight(node):  # a weight alone; it meets no activation here
            return frozenset()
        by_edge = [self.owners[c] for c in _next(node) if self._is_weight(c)]
        frozen = [layer for tensor in _kept(node) if (layer := self.layers.layer_of(tensor)) is not None]
        return frozenset(frozen).union(*by_edge)

    def _joined_outputs(self, node: Node) -> list[tuple[str, Node]]:
        """Return the layers whose output a custom autograd function joins with another input, and the output's node.

        Such an output is known by its leaves: they belong to that one layer, because the layer ran on a detached input.
        """
        if not isinstance(node, torch.autograd.function.BackwardCFunction) or len(_next(node)) < 2:
            return []
        single = [(c, self.owners[c]) for c in _next(node) if len(self.owners[c]) == 1 and not self._is_weight(c)]
        return [(layer, c) for c, (layer,) in single if layer != ACTIVATION]

    def _met(self, node: Node) -> frozenset[str]:
        return self._weights_at(node).union(layer for layer, _ in self._joined_outputs(node))


def _edge(out: Tensor) -> Any:
    return get_gradient_edge(out) if out.requires_grad else None


def _sorted_nodes(roots: Sequence[Node]) -> list[Node]:
    """Return all nodes behind the roots, each after the nodes that it leads to."""
    done: dict[Node, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack += [(c, False) for c in _next(node) if c not in done]
    return list(done)


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _is_leaf(node: Node) -> bool:
    return hasattr(node, "variable")  # only AccumulateGrad nodes have it, which stand for leaves


def _size(node: Node) -> int:
    """Return the number of elements of the node's value in the forward pass; -1 for several values."""
    if _is_leaf(node):
        return int(node.variable.numel())
    sizes = [prod(meta.shape) for meta in node._input_metadata]  # the inputs of backward are the outputs of forward
    return sizes[0] if len(sizes) == 1 else -1


_SAVED: dict[type, list[str]] = {}  # by class of node, since `dir` is slow


def _kept(node: Node) -> list[Tensor]:
    """Return the tensors that the node keeps for the backward pass."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        names = ["saved_tensors"]
    else:
        names = _SAVED.setdefault(type(node), [name for name in dir(node) if name.startswith("_saved_")])
    try:
        kept = [getattr(node, name) for name in names]
    except RuntimeError:  # an earlier objective went through this node and freed its tensors
        return []
    flat = [each for value in kept for each in (value if isinstance(value, tuple | list) else (value,))]
    return [tensor for tensor in flat if isinstance(tensor, Tensor)]
