"""Find the parameters that carry errors, in the graph of a forward pass.

An error passes through a parameter that is multiplied with something that depends on the samples. Additions and scales
of single units (positional parameters, the weight of a LayerNorm) do not mix units, so they keep their true derivative.
Every other operation that brings a parameter between an error and its destination is refused: feedback alignment cannot
replace the parameter there, and the error would pass through true weights without anybody's notice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.grad import unfused
from bpfree.inputs import Inputs, apply, forward, main_input, tensors_of
from bpfree.local.segments import reached_parameters
from bpfree.local.transport import LEAF, Factor, factors_of, root_of, same_storage
from bpfree.nets.acceptance import eager
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise

# Products of a matrix with one vector occur in power iterations (spectral_norm). A batch of samples is a matrix.
_OF_VECTORS = {"MvBackward0", "AddmvBackward0", "DotBackward0"}
_LOOKUPS = {"EmbeddingBackward0", "EmbeddingBagBackward0", "IndexBackward0", "IndexSelectBackward0", "GatherBackward0"}
_SCALES = {"MulBackward0", "DivBackward0"}
_UNIT_BY_UNIT = {
    *("NativeLayerNormBackward0", "NativeGroupNormBackward0", "NativeBatchNormBackward0", "CudnnBatchNormBackward0"),
    *("MiopenBatchNormBackward0", "FusedRmsNormBackward0", "PreluKernelBackward0", "AddcmulBackward0", "PowBackward1"),
    *("AddcdivBackward0", "LerpBackward1", "MaximumBackward0", "MinimumBackward0"),
}
_MASKS = {"_saved_attn_mask", "_saved_attn_bias"}  # added to scores
_CURE = (
    "Compute it by nn.Linear or a convolution layer (a changed weight by torch.nn.utils.parametrize), or use a rule "
    "without weight transport such as dfa or mono_forward"
)


_HIDDEN = (
    "net: it uses activation checkpointing with use_reentrant=True, which hides its layers, so errors would pass "
    "through true weights. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)


class Direct(NamedTuple):
    """A parameter that carries errors where it is used without its layer.

    Attributes:
        name: the name of the parameter.
        inputs_first: True if it is used as x @ W, with W [inputs, outputs].
    """

    name: str
    inputs_first: bool


def direct_uses(net: nn.Module, out: Tensor, inputs: tuple[Tensor, ...], known: set[nn.Parameter]) -> list[Direct]:
    """Return the parameters that carry errors in the graph of `out`.

    Args:
        net: the net that has computed `out`. The errors of its hooked layers are already led elsewhere.
        out: the output.
        inputs: leaves that require a gradient, from which `out` was computed.
        known: parameters that are weights wherever they are a factor, such as those of layers.

    Raises:
        UserError: an error passes through something that was computed from parameters alone, or through a parameter in
            an operation that is not a product.
    """
    walk = _Walk(net, out, inputs, set(known))
    # A parameter that turns out to be a weight makes the output of its product depend on samples, even where the input
    # is a lookup or a constant. So look again until nothing new turns up.
    while walk.look():
        pass
    if walk.refusals:
        raise UserError(next(iter(walk.refusals.values())))
    return list(walk.uses.values())


@contextmanager
def rehearsed(net: nn.Module, x: Inputs) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Run a forward pass whose graph can be inspected inside the context, and undo it afterwards.

    Buffers and random state are then as before.

    Args:
        net: any net.
        x: [B, ...], a few samples, as `bpfree.inputs.forward` takes them.

    Yields:
        The output, and the samples, as leaves that require a gradient where they are floating point numbers.

    Raises:
        UserError: a trainable parameter is in no graph although its module ran, so that the true weight could carry
            errors without being seen.
    """
    leaves = apply(x, lambda t: t.detach().requires_grad_(t.is_floating_point()))
    names: set[str] = set()  # of modules that run with gradients off

    def look(name: str) -> Callable[[nn.Module, object], None]:
        return lambda module, args: None if torch.is_grad_enabled() else names.add(name)

    modules = [(name, module) for name, module in net.named_modules() if not isinstance(module, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(look(name)) for name, module in modules]
    try:
        with unchanged_buffers(net), Noise().global_rng(main_input(x).device), torch.enable_grad(), eager():
            with unfused(net):
                out = forward(net, apply(leaves, torch.clone))  # clones, which a net may change in place
            _refuse_hidden(net, names, out)
            yield out, tensors_of(leaves)
    finally:
        for handle in handles:
            handle.remove()


def _refuse_hidden(net: nn.Module, names: set[str], out: Tensor) -> None:
    reached = set(reached_parameters(net, out))
    for name, p in net.named_parameters():
        if p.requires_grad and name not in reached and name.rpartition(".")[0] in names:
            raise UserError(
                f"parameter '{name}' is trainable, but its module runs with gradients off, as activation "
                "checkpointing with use_reentrant=True does it. Use checkpoint(..., use_reentrant=False), or freeze it"
            )


def _inputs_first(out: Tensor) -> list[Any]:
    """The nodes of the graph in the order of computation: each stands behind the nodes that it was computed from."""
    order: list[Any] = []
    done, stack = set(), [(out.grad_fn, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node is not None and node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((following, False) for following, _ in node.next_functions)
    return order


class _Walk:
    """A walk over a graph, which learns for each node if it depends on samples and on trainable parameters.

    Attributes:
        order: the nodes, inputs first.
        data: by node, True if its output depends on the samples.
        learns: by node, True if its output depends on a parameter.
        uses: the parameters found to carry errors.
        refusals: by node, the text of an error.
    """

    def __init__(self, net: nn.Module, out: Tensor, inputs: tuple[Tensor, ...], known: set[nn.Parameter]) -> None:
        self.order = _inputs_first(out)
        self.names = {p: name for name, p in net.named_parameters()}
        self.frozen = [p for p in net.parameters() if not p.requires_grad]
        self.inputs = {id(x) for x in inputs}
        self.known = known
        self.uses: dict[nn.Parameter, Direct] = {}
        self.refusals: dict[Any, str] = {}
        self.data: dict[Any, bool] = {None: False}
        self.learns: dict[Any, bool] = {None: False}

    def look(self) -> bool:
        """Go through the graph once. Return True if new parameters were found, so that another look is needed."""
        before = len(self.known)
        self.refusals.clear()
        for node in self.order:
            edges = [edge for edge, _ in node.next_functions]
            factors = factors_of(node, self.frozen)
            variable = getattr(node, "variable", None) if node.name() == LEAF else None
            self.learns[node] = variable in self.names if variable is not None else any(map(self.learns.get, edges))
            self.data[node] = (
                id(variable) in self.inputs
                or node.name() in _LOOKUPS
                or any(map(self.data.get, edges))
                or (
                    any(f.root in self.known or (f.edge is None and f.root is None) for f in factors)
                    and node.name() not in _OF_VECTORS
                )
            )
            if factors:
                self._product(node, factors)
            elif any(map(self._carries, edges)):
                self._other(node, edges)
        return len(self.known) > before

    def _carries(self, edge: Any) -> bool:
        """True if an error along this edge reaches parameters through something that depends on the samples."""
        return self.data[edge] and self.learns[edge]

    def _alone(self, edge: Any) -> bool:
        """True if the output of a node was computed from parameters alone."""
        return self.learns[edge] and not self.data[edge]

    def _product(self, node: Any, factors: list[Factor]) -> None:
        if sum(factor.root in self.known for factor in factors) > 1:
            self.refusals[node] = f"net: two weights are multiplied by each other. {_CURE}"
        for factor in factors:
            if not any(self._carries(other.edge) for other in factors if other is not factor):
                continue
            if factor.root in self.names:
                assert factor.tensor is not None
                self.known.add(factor.root)
                as_it_lies = factor.root.dim() == 2 and factor.root.stride() == factor.tensor.stride()
                use = Direct(self.names[factor.root], as_it_lies and factor.name == "mat2")
                self.uses.setdefault(factor.root, use)
            elif factor.root is not None:
                self.refusals[node] = "net: it uses a parameter that is not registered in a module. Register it"
            elif self._alone(factor.edge):
                self.refusals[node] = (
                    f"net: the error passes through a matrix that is computed from {self._origin(factor.edge)}. {_CURE}"
                )

    def _other(self, node: Any, edges: list[Any]) -> None:
        name = node.name()
        if name == "CheckpointFunctionBackward":
            self.refusals[node] = _HIDDEN
        elif name in _SCALES:
            self._scale(node, edges)
        elif name not in _UNIT_BY_UNIT and (self.frozen or any(map(self._alone, edges))):
            kept = {self.names[p] for p in self.names if p.dim() > 1 and any(same_storage(p, t) for t in _kept(node))}
            if _is_custom(node):
                kept |= {self.names[p] for p in map(root_of, edges) if p in self.names and p.dim() > 1}
            if kept:
                self.refusals[node] = (
                    f"net: the error passes through parameter '{min(kept)}' in {name.removesuffix('0')}, an operation "
                    f"that takes no feedback. {_CURE}"
                )

    def _scale(self, node: Any, edges: list[Any]) -> None:
        """Allow a scale of single units, which keeps its true derivative; refuse one that spreads units."""
        for mine, other in ((0, 1), (1, 0)):
            if len(edges) < 2 or not (self._alone(edges[mine]) and self._carries(edges[other])):
                continue
            a, b = node._saved_self, node._saved_other
            if a is None or b is None:
                continue
            x = (a, b)[other]
            if torch.broadcast_tensors(a, b)[0].shape != x.shape:  # type: ignore[no-untyped-call]
                self.refusals[node] = (
                    f"net: units are spread by multiplying them by {self._origin(edges[mine])}, which is a matrix "
                    f"product written as scales. {_CURE}"
                )

    def _origin(self, node: Any) -> str:
        stack, found = [node], []
        while stack:
            node = stack.pop()
            if node is not None:
                found += [self.names[node.variable]] if node.name() == LEAF else []
                stack.extend(edge for edge, _ in node.next_functions)
        return f"parameter '{min(found)}'"


def _is_custom(node: Any) -> bool:
    """True if the node belongs to a user's own autograd function, which may keep any tensor."""
    name = node.name()
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return bool(name != "_DeliverBackward")
    return "::" in name and (not name.startswith("torch::autograd::") or "CppNode" in name)


def _kept(node: Any) -> Iterator[Tensor]:
    """The tensors that a node keeps for the backward pass, without masks."""
    for attribute in dir(node):
        if attribute == "saved_tensors" or (attribute.startswith("_saved_") and attribute not in _MASKS):
            value = getattr(node, attribute)
            yield from (t for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))
