"""Inputs and outputs of a net: one tensor, several tensors, or tensors by name.

A net of one input is called as net(x). A tuple is passed as net(*x) and a dict as net(**x), so nets with two inputs and
nets that take `input_ids` and `attention_mask` need no wrapper. The output is one tensor, or an object or a dict that
has one under `logits`, as classifiers of Hugging Face do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import UserError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""The input of a net's `forward`: one tensor, several tensors, or several by name."""


def forward(net: nn.Module, x: Inputs) -> Tensor:
    """Return the output of a net, one tensor [B, ...].

    Args:
        net: any module.
        x: the input of its `forward`; see the module.

    Raises:
        UserError: the output is not a tensor and has no tensor under `logits`.
    """
    return scores_of(call(net, x))


def call(net: nn.Module, x: Inputs) -> Any:
    """Call a net with an input, and return its output unchanged."""
    if isinstance(x, Tensor):
        return net(x)
    return net(**x) if isinstance(x, Mapping) else net(*x)


def scores_of(out: Any) -> Tensor:
    """Return the tensor in an output of a net.

    Args:
        out: a tensor, or an object or a dict with a tensor under `logits`.

    Raises:
        UserError: the output contains no such tensor.
    """
    if isinstance(out, Tensor):
        return out
    # A name and not the first tensor: the first tensor of a classifier may be its loss or its hidden states.
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise UserError(
        f"net: its output is {type(out).__name__}, allowed: one tensor [B, ...], or an object or a dict that has one "
        "under 'logits'. Wrap the net so that it returns its scores"
    )


def features_of(out: Any) -> Tensor | None:
    """Return the features that a module inside a net gives: its output, or the first of several in a tuple.

    Blocks of Hugging Face and torch's recurrent layers give a tuple that begins with them.

    Args:
        out: the output of a module.

    Returns:
        The tensor; None if there is none.
    """
    first = out[0] if type(out) is tuple and out else out
    return first if isinstance(first, Tensor) else None


def with_features(out: Any, h: Tensor) -> Any:
    """Return the output of a module with other features, see `features_of`; the rest of a tuple stays.

    Args:
        out: the output of the module.
        h: the new features.
    """
    return (h, *out[1:]) if type(out) is tuple else h


def tensors_of(x: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors of an input, in order."""
    if isinstance(x, Tensor):
        return (x,)
    return tuple(x.values()) if isinstance(x, Mapping) else tuple(x)


def main_input(x: Inputs) -> Tensor:
    """Return the first tensor of floating numbers, or else the first tensor.

    Device, batch size and floating type are read from it: masks and tokens beside it have other types.
    """
    tensors = tensors_of(x)
    return next((t for t in tensors if t.is_floating_point()), tensors[0])  # tokens alone: the first


def count(x: Inputs) -> int:
    """Return the number of samples B."""
    return len(tensors_of(x)[0])


def apply(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return an input of the same form, with `change` applied to each of its tensors.

    Args:
        x: one tensor, several, or several by name.
        change: takes a tensor and returns one.

    Example:
        >>> apply({"a": torch.zeros(2, 3)}, lambda t: t[:1])["a"].shape
        torch.Size([1, 3])
    """
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {name: change(t) for name, t in x.items()}
    return tuple(change(t) for t in x)


def concatenate(parts: list[Inputs]) -> Inputs:
    """Return inputs of one form joined along the samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        # All parts have the form of the first one. The tests of their types are there for the type checker.
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    if isinstance(first, Mapping):
        return {name: torch.cat([part[name] for part in parts if isinstance(part, Mapping)]) for name in first}
    return tuple(torch.cat(list(tensors)) for tensors in zip(*map(tensors_of, parts), strict=True))


def from_arrays(x: Any, like: Tensor, *, tokens: bool = True) -> Inputs:
    """Convert the user's samples to the input of a net: arrays become tensors, floats get the type of the net.

    Args:
        x: an array, a tensor or nested lists of numbers, or a tuple or a dict of them.
        like: a parameter of the net, which has its floating type and its device.
        tokens: True if integers may be tokens and stay integers; else they become floats.

    Raises:
        UserError: the values are not numbers.
    """
    if isinstance(x, Mapping):
        return {str(name): _tensor(values, like, tokens) for name, values in x.items()}
    # A tuple is several inputs. A list is one input, since nested lists of numbers are an array.
    if isinstance(x, tuple):
        return tuple(_tensor(values, like, tokens) for values in x)
    return _tensor(x, like, tokens)


def _tensor(values: Any, like: Tensor, tokens: bool) -> Tensor:
    try:
        # as_tensor shares the memory of an array, so that a large data set is not copied.
        tensor = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"x: found {type(values).__name__}, allowed: an array or a tensor of numbers") from error
    # Complex numbers are left as they are: a conversion would drop their imaginary part.
    is_float = tensor.is_floating_point() or not (tokens or tensor.is_complex())
    return tensor.to(like.device, like.dtype if is_float else None)


def one_tensor(x: Inputs) -> Tensor:
    """Return the input as one tensor, for code that works with a single tensor.

    Raises:
        UserError: the input is several tensors.
    """
    if isinstance(x, Tensor):
        return x
    form = f"named tensors ({', '.join(x)})" if isinstance(x, Mapping) else f"{len(x)} tensors"
    raise UserError(
        f"net: it takes {form}, but this rule or command works on samples that are one tensor. Use a rule such as "
        "backprop, dfa, fa or es, or wrap the net so that it takes one tensor"
    )


def shapes(x: Inputs) -> str:
    """Return the shapes of an input as text, for messages."""
    if isinstance(x, Tensor):
        return str(list(x.shape))
    if isinstance(x, Mapping):
        return ", ".join(f"{name} {list(t.shape)}" for name, t in x.items())
    return ", ".join(str(list(t.shape)) for t in x)
