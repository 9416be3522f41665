"""Send the error through other matrices where a net uses parameters without a layer, as in `x @ self.weight`.

Autograd keeps the factors of a product (matmul, linear, convolution) for the backward pass. The error that reaches one
factor is multiplied by the other. So the error passes through a parameter exactly where the parameter, or a view of it,
is a kept factor. If we replace the kept factor, the error passes through another matrix, and the output stays the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
"""By the name of a graph node: its factors as autograd names them, and the index of each factor's edge."""

LEAF = "torch::autograd::AccumulateGrad"
_VIEWS = {f"{name}Backward{i}" for i in range(2) for name in (
    *("T", "Transpose", "Permute", "View", "ReshapeAlias", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "Alias"),
    *("Select", "Slice", "Split", "SplitWithSizes", "Unbind", "AsStrided", "ToCopy"),
)}  # fmt: skip


def send_through(
    net: nn.Module, out: Tensor, matrices: Mapping[nn.Parameter, Callable[[], Tensor]]
) -> set[nn.Parameter]:
    """Replace parameters by other matrices in the backward pass of `out`.

    The value of `out` stays the same. The gradient of a parameter is still computed from the error that arrives there.

    Args:
        net: the net that owns the parameters.
        out: a tensor with a graph.
        matrices: for each parameter, a function that returns the matrix, of the parameter's shape. It is called in the
            backward pass.

    Returns:
        The parameters whose use was found in the graph.

    Raises:
        UserError: a use cannot be led elsewhere: a part of a parameter in another number type, or one inside activation
            checkpointing.
    """
    replaced = set()
    frozen = [p for p in matrices if not p.requires_grad]
    for node in _nodes(out):
        factors = factors_of(node, frozen)
        owners = [factor.root for factor in factors if factor.root in matrices]
        for factor in factors:
            # If both factors are such parameters, no error passes here: the product depends on parameters alone.
            if factor.root in matrices and len(owners) == 1:
                _replace(net, factor, matrices[factor.root])
                replaced.add(factor.root)
    return replaced


class Factor(NamedTuple):
    """A factor of a product in a graph.

    Attributes:
        node: the node of the product.
        name: the name of the factor in autograd, such as "mat2".
        edge: the node that made the factor, or None.
        root: the parameter of which it is a view or a copy in another number type, or None.
    """

    node: Any
    name: str
    edge: Any
    root: Any

    @property
    def tensor(self) -> Tensor | None:
        """The factor itself; None if autograd does not keep it, since the other factor needs no error."""
        kept: Tensor | None = getattr(self.node, f"_saved_{self.name}")
        return kept


def factors_of(node: Any, frozen: Sequence[nn.Parameter]) -> list[Factor]:
    """Return the factors of a product; an empty list for any other operation.

    Args:
        node: a node of a graph.
        frozen: parameters that require no gradient. They have no node in the graph, so they are recognised by their
            place in memory.
    """
    factors = []
    for name, place in PRODUCTS.get(node.name(), {}).items():
        edge = node.next_functions[place][0]
        factor = Factor(node, name, edge, root_of(edge))
        if edge is None and frozen and (kept := factor.tensor) is not None:
            factor = factor._replace(root=next((p for p in frozen if same_storage(p, kept)), None))
        factors.append(factor)
    return factors


def root_of(node: Any) -> nn.Parameter | None:
    """Return the parameter of which a node's output is a view, or a copy in another number type; else None.

    Args:
        node: a node of a graph, or None.
    """
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    variable = getattr(node, "variable", None)
    return variable if isinstance(variable, nn.Parameter) else None


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors lie in the same memory.

    Args:
        a: a tensor.
        b: another tensor.
    """
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _offset(s: Tensor, p: nn.Parameter) -> int | None:
    """The offset at which a view of a parameter begins in it; None if it is a copy with another memory layout."""
    if same_storage(s, p):
        return int(s.storage_offset() - p.storage_offset())
    # A cast keeps the order in memory of what is cast, but for one to channels last.
    whole = s.untyped_storage().nbytes() == p.numel() * s.itemsize
    return int(s.storage_offset()) if whole and (p.dim() < 4 or s.stride() == p.stride()) else None


def _replace(net: nn.Module, factor: Factor, matrix: Callable[[], Tensor]) -> None:
    s, p = factor.tensor, factor.root
    if s is None:
        return
    begin = _offset(s, p)
    if begin is None:
        raise UserError(
            f"parameter '{_name(net, p)}' is used in parts and in another number type, so feedback alignment cannot "
            "tell which part it is. Use precision: float32, or compute it by nn.Linear"
        )
    size, stride, dtype, strides = s.size(), s.stride(), s.dtype, p.stride()

    def part(_: object) -> Tensor:
        # The kept factor may be a part or a transposed view of the parameter. The same view of B takes its place, so B
        # must first lie in memory as the parameter does.
        b = matrix().to(dtype)
        if b.stride() != strides:
            b = torch.empty_strided(b.size(), strides, dtype=dtype, device=b.device).copy_(b)
        return b.as_strided(size, stride, b.storage_offset() + begin)

    try:
        # The first hook runs when the kept tensor is packed, and drops it; the second gives what is unpacked. torch
        # refuses a second pair of hooks on one tensor, and activation checkpointing has set the first pair.
        getattr(factor.node, f"_raw_saved_{factor.name}").register_hooks(lambda _: None, part)
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
