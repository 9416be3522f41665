"""Where the error passes through parameters of a net, and how it is sent through other matrices there.

Autograd keeps the factors of a product (matmul, linear, convolution) for the backward pass. The error reaches one
factor multiplied by the other. So the error passes through a parameter exactly where a parameter, or a view of one, is
such a factor, and it passes through another matrix if the kept factor is replaced.

Additions and scales of single units (positional parameters, the weights of a LayerNorm) mix no units and keep their
true derivative.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.cut import reached_parameters
from bpfree.errors import UserError

PRODUCTS: dict[str, dict[str, int]] = {
    "MmBackward0": {"self": 0, "mat2": 1},
    "AddmmBackward0": {"mat1": 1, "mat2": 2},
    "BmmBackward0": {"self": 0, "mat2": 1},
    "BaddbmmBackward0": {"batch1": 1, "batch2": 2},
    "AddbmmBackward0": {"batch1": 1, "batch2": 2},
    "LinearBackward0": {"input": 0, "weight": 1},
    "MvBackward0": {"self": 0, "vec": 1},
    "AddmvBackward0": {"mat": 1, "vec": 2},
    "DotBackward0": {"self": 0, "tensor": 1},
    "ConvolutionBackward0": {"input": 0, "weight": 1},
    "TrilinearBackward0": {"i1": 0, "i2": 1, "i3": 2},
}
"""By the name of the node: its factors as autograd names them, and the places of their edges."""

_OF_VECTORS = {"MvBackward0", "AddmvBackward0", "DotBackward0"}  # power iterations, and no batch of samples
_LEAF = "torch::autograd::AccumulateGrad"
_VIEWS = {f"{name}Backward{i}" for i in range(2) for name in (
    *("T", "Transpose", "Permute", "View", "ReshapeAlias", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "Alias"),
    *("Select", "Slice", "Split", "SplitWithSizes", "Unbind", "AsStrided", "ToCopy"),
)}  # fmt: skip
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


class Direct(NamedTuple):
    """A parameter that carries errors where it is used without its layer.

    Attributes:
        name: of the parameter.
        inputs_first: it is used as x @ W, with W [inputs, outputs].
    """

    name: str
    inputs_first: bool


def send_through(
    net: nn.Module, out: Tensor, matrices: Mapping[nn.Parameter, Callable[[], Tensor]]
) -> set[nn.Parameter]:
    """Have the backward pass of `out` multiply errors by other matrices where it would by these parameters.

    Args:
        net: it owns the parameters.
        out: any tensor with a graph; its value stays, and so do the gradients of the parameters as functions of the
            error that arrives.
        matrices: by parameter, gives the matrix, of its shape, when an error comes by.

    Returns:
        The parameters of which a use was found.

    Raises:
        UserError: a use cannot be led elsewhere: a part of a parameter in another number type, or one inside activation
            checkpointing.
    """
    found = set()
    frozen = [p for p in matrices if not p.requires_grad]
    for node in _nodes(out):
        factors = _factors(node, frozen)
        owners = [factor.root for factor in factors if factor.root in matrices]
        for factor in factors:
            if factor.root in matrices and len(owners) == 1:
                if factor.tensor is not None:  # else the other factor needs no error
                    _replace(net, factor, matrices[factor.root])
                found.add(factor.root)
    return found


def direct_uses(net: nn.Module, out: Tensor, inputs: tuple[Tensor, ...], known: set[nn.Parameter]) -> list[Direct]:
    """The parameters that carry errors in the graph of `out`.

    Args:
        net: it has computed `out` with its layers' own errors already led elsewhere.
        out: the output.
        inputs: leaves that require a gradient, from which `out` was computed.
        known: parameters that are weights wherever they are a factor, such as those of layers.

    Raises:
        UserError: an error passes through something that was computed from parameters alone, or through a parameter in
            an operation that is no product.
    """
    walk = _Walk(net, out, inputs, set(known))
    while walk.look():
        pass
    if walk.refusals:
        raise UserError(next(iter(walk.refusals.values())))
    return list(walk.uses.values())


@contextmanager
def run_without_graph(net: nn.Module) -> Iterator[set[str]]:
    """Collects, while active, the names of the modules that run with gradients off."""
    names: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, object], None]:
        return lambda module, args: None if torch.is_grad_enabled() else names.add(name)

    handles = [module.register_forward_pre_hook(look(name)) for name, module in net.named_modules()]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def refuse_hidden(net: nn.Module, names: set[str], out: Tensor) -> None:
    """Refuse layers that ran and are in no graph, whose true weights could carry errors without being seen.

    Args:
        net: the net.
        names: of modules that ran with gradients off.
        out: what the net gave.

    Raises:
        UserError: a module among them has a trainable parameter that the graph of `out` does not reach.
    """
    reached = set(reached_parameters(net, out))
    for name, p in net.named_parameters():
        if p.requires_grad and name not in reached and name.rpartition(".")[0] in names:
            raise UserError(
                f"parameter '{name}' is trainable, but its module runs with gradients off, as activation "
                "checkpointing with use_reentrant=True does it. Use checkpoint(..., use_reentrant=False), or freeze it"
            )


class _Factor(NamedTuple):
    saved: Any  # the place in the node where autograd keeps it
    tensor: Tensor | None  # read only if it may be a parameter
    edge: Any  # the node that made it, or None
    root: Any  # the parameter of which it is a view or a copy in another type
    name: str


def _factors(node: Any, frozen: list[nn.Parameter]) -> list[_Factor]:
    """The factors of a product; none for another operation."""
    found = []
    for name, place in PRODUCTS.get(node.name(), {}).items():
        edge = node.next_functions[place][0]
        root, tensor = _root(edge), None
        if root is not None or (edge is None and frozen):
            tensor = getattr(node, f"_saved_{name}")
        if root is None and tensor is not None:
            root = next((p for p in frozen if _same_storage(p, tensor)), None)
        found.append(_Factor(getattr(node, f"_raw_saved_{name}"), tensor, edge, root, name))
    return found


def _root(node: Any) -> nn.Parameter | None:
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    variable = getattr(node, "variable", None)
    return variable if isinstance(variable, nn.Parameter) else None


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _offset(factor: _Factor) -> int | None:
    """Where a view of a parameter begins in it; None if it is a copy that is not laid out like the parameter."""
    s, p = factor.tensor, factor.root
    assert s is not None
    if _same_storage(s, p):
        return int(s.storage_offset() - p.storage_offset())
    # A cast keeps the order in memory of what is cast, but for one to channels last.
    whole = s.untyped_storage().nbytes() == p.numel() * s.itemsize
    return int(s.storage_offset()) if whole and (p.dim() < 4 or s.stride() == p.stride()) else None


def _replace(net: nn.Module, factor: _Factor, matrix: Callable[[], Tensor]) -> None:
    s, p, begin = factor.tensor, factor.root, _offset(factor)
    assert s is not None
    if begin is None:
        raise UserError(
            f"parameter '{_name(net, p)}' is used in parts and in another number type, so feedback alignment cannot "
            "tell which part it is. Use precision: float32, or compute it by nn.Linear"
        )
    size, stride, dtype, strides = s.size(), s.stride(), s.dtype, p.stride()

    def part(_: object) -> Tensor:
        b = matrix().to(dtype)
        if b.stride() != strides:
            b = torch.empty_strided(b.size(), strides, dtype=dtype, device=b.device).copy_(b)
        return b.as_strided(size, stride, b.storage_offset() + begin)

    try:
        factor.saved.register_hooks(lambda _: None, part)
    except RuntimeError as error:
        raise UserError(
            f"parameter '{_name(net, p)}' is used inside activation checkpointing and not by the forward of an "
            "nn.Linear or a convolution, so its true value would carry errors. Leave that part out of the checkpoint, "
            "or compute it by nn.Linear"
        ) from error


def _name(net: nn.Module, p: nn.Parameter) -> str:
    return next(name for name, each in net.named_parameters() if each is p)


def _nodes(out: Tensor) -> Iterator[Any]:
    """The nodes of the graph, each once."""
    seen, stack = set(), [out.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)


def _inputs_first(out: Tensor) -> list[Any]:
    """The nodes of the graph, each behind those from which it was computed."""
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
    """What is known of a graph: which nodes depend on the samples, and which on trainable parameters."""

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
        """Go through the graph; whether parameters were found that carry errors, so that one has to look again."""
        before = len(self.known)
        self.refusals.clear()
        for node in self.order:
            edges = [edge for edge, _ in node.next_functions]
            factors = _factors(node, self.frozen)
            variable = getattr(node, "variable", None) if node.name() == _LEAF else None
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
        """Whether an error that goes there reaches parameters through something that depends on the samples."""
        return self.data[edge] and self.learns[edge]

    def _alone(self, edge: Any) -> bool:
        """Whether it was computed from parameters alone."""
        return self.learns[edge] and not self.data[edge]

    def _product(self, node: Any, factors: list[_Factor]) -> None:
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
            self.refusals[node] = HIDDEN
        elif name in _SCALES:
            self._scale(node, edges)
        elif name not in _UNIT_BY_UNIT and (self.frozen or any(map(self._alone, edges))):
            kept = {self.names[p] for p in self.names if p.dim() > 1 and any(_same_storage(p, t) for t in _kept(node))}
            if isinstance(node, torch.autograd.function.BackwardCFunction) and name != "_DeliverBackward":
                kept |= {self.names[p] for p in map(_root, edges) if p in self.names and p.dim() > 1}
            if kept:
                self.refusals[node] = (
                    f"net: the error passes through parameter '{min(kept)}' in {name.removesuffix('0')}, an operation "
                    f"that takes no feedback. {_CURE}"
                )

    def _scale(self, node: Any, edges: list[Any]) -> None:
        """A scale of units one by one has its true derivative; one that makes several units of one is a matrix."""
        for mine, other in ((0, 1), (1, 0)):
            if len(edges) < 2 or not (self._alone(edges[mine]) and self._carries(edges[other])):
                continue
            a, b = node._saved_self, node._saved_other
            if a is None or b is None:
                continue
            x = (a, b)[other]
            if torch.broadcast_shapes(a.shape, b.shape) != x.shape:
                self.refusals[node] = (
                    f"net: units are spread by multiplying them by {self._origin(edges[mine])}, which is a matrix "
                    f"product written as scales. {_CURE}"
                )

    def _origin(self, node: Any) -> str:
        stack, found = [node], []
        while stack:
            node = stack.pop()
            if node is not None:
                found += [self.names[node.variable]] if node.name() == _LEAF else []
                stack.extend(edge for edge, _ in node.next_functions)
        return f"parameter '{min(found)}'"


HIDDEN = (
    "net: it uses activation checkpointing with use_reentrant=True, which hides its layers, so errors would pass "
    "through true weights. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)


def _kept(node: Any) -> Iterator[Tensor]:
    """What a node keeps for the backward pass, but for masks."""
    for attribute in dir(node):
        if attribute == "saved_tensors" or (attribute.startswith("_saved_") and attribute not in _MASKS):
            value = getattr(node, attribute)
            yield from (t for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))
