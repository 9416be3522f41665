"""How the error is sent through other matrices where parameters are used without a layer.

Autograd keeps the factors of a product (matmul, linear, convolution) for the backward pass. The error reaches one
factor multiplied by the other. So the error passes through a parameter exactly where a parameter, or a view of one, is
such a factor, and it passes through another matrix if the kept factor is replaced.
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
"""By the name of the node: its factors as autograd names them, and the places of their edges."""

LEAF = "torch::autograd::AccumulateGrad"
_VIEWS = {f"{name}Backward{i}" for i in range(2) for name in (
    *("T", "Transpose", "Permute", "View", "ReshapeAlias", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "Alias"),
    *("Select", "Slice", "Split", "SplitWithSizes", "Unbind", "AsStrided", "ToCopy"),
)}  # fmt: skip


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
        factors = factors_of(node, frozen)
        owners = [factor.root for factor in factors if factor.root in matrices]
        for factor in factors:
            if factor.root in matrices and len(owners) == 1:
                _replace(net, factor, matrices[factor.root])
                found.add(factor.root)
    return found


class Factor(NamedTuple):
    """A factor of a product in a graph.

    Attributes:
        node: of the product.
        name: of the factor, as autograd has it.
        edge: the node that made the factor, or None.
        root: the parameter of which it is a view or a copy in another number type, or None.
    """

    node: Any
    name: str
    edge: Any
    root: Any

    @property
    def tensor(self) -> Tensor | None:
        """The factor; None if it is not kept, since the other factor needs no error."""
        kept: Tensor | None = getattr(self.node, f"_saved_{self.name}")
        return kept


def factors_of(node: Any, frozen: Sequence[nn.Parameter]) -> list[Factor]:
    """The factors of a product; none for another operation.

    Args:
        node: of a graph.
        frozen: parameters that are in no graph, and are found by their place in memory.
    """
    found = []
    for name, place in PRODUCTS.get(node.name(), {}).items():
        edge = node.next_functions[place][0]
        factor = Factor(node, name, edge, root_of(edge))
        if edge is None and frozen and (kept := factor.tensor) is not None:
            factor = factor._replace(root=next((p for p in frozen if same_storage(p, kept)), None))
        found.append(factor)
    return found


def root_of(node: Any) -> nn.Parameter | None:
    """The parameter of which the output of a node is a view or a copy in another number type."""
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    variable = getattr(node, "variable", None)
    return variable if isinstance(variable, nn.Parameter) else None


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _offset(s: Tensor, p: nn.Parameter) -> int | None:
    """Where a view of a parameter begins in it; None if it is a copy that is not laid out like the parameter."""
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
        b = matrix().to(dtype)
        if b.stride() != strides:
            b = torch.empty_strided(b.size(), strides, dtype=dtype, device=b.device).copy_(b)
        return b.as_strided(size, stride, b.storage_offset() + begin)

    try:
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
