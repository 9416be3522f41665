"""Convert arrays of any kind to tensors, or raise one clear error. No value is rounded, cut or filled in silently."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.data.files.rows import Rows
from bpfree.errors import UserError
from bpfree.inputs import Inputs

CHANNELS = (1, 3, 4)
"""Numbers of channels by which the layout of an image is recognised: grey, colour, colour with transparency."""

_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}  # torch can do little with the narrow ones
_CURES = {
    "O": "Give numbers alone, such as x.astype('float32'); of a table of pandas, the columns of numbers",
    "U": "Of labels, numpy.unique(y, return_inverse=True)[1] makes class numbers; other text must be encoded first",
    "S": "Of labels, numpy.unique(y, return_inverse=True)[1] makes class numbers; other text must be encoded first",
    "M": "Turn times into numbers first, such as x.astype('int64') / 1e9",
    "m": "Turn times into numbers first, such as x.astype('int64') / 1e9",
    "c": "Give real and imaginary parts as two features, such as numpy.stack([x.real, x.imag], 1)",
}


def to_tensor(values: Any, what: str) -> Tensor:
    """Convert numpy arrays, tensors, pandas tables or nested lists to a dense tensor of real numbers.

    Floating arrays of 64 bits or more become float32, as torch users expect; uint16 becomes int32 and uint32 int64.

    Args:
        values: an array of any shape.
        what: the values as the user knows them, for errors.

    Returns:
        A tensor of the same shape. A tensor of the user's stays where it is, and its memory is shared if possible.

    Raises:
        UserError: the values are not an array of numbers, are sparse or complex, or some are masked.
    """
    if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
        values = _stacked(values, what)
    if isinstance(values, Tensor):
        return values if isinstance(values, Rows) else _plain(values.detach(), what)
    if hasattr(values, "toarray") or hasattr(values, "todense"):
        raise _unfit(what, f"a sparse matrix ({type(values).__name__})", "Give x.toarray()")
    _refuse_masked(values, what)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unfit(what, f"{type(values).__name__} ({_line(error)})", "Rows must be of one length") from error
    return _from_numpy(array, values, what)


def _stacked(values: Any, what: str) -> Tensor:
    """Return a list of tensors as one tensor; numpy would go through them value by value, which is slow."""
    try:
        return torch.stack(list(values))
    except (RuntimeError, TypeError) as error:
        raise _unfit(what, f"tensors that differ ({_line(error)})", "All must be of one shape and type") from error


def _plain(x: Tensor, what: str) -> Tensor:
    """Return the tensor in a type that torch can compute with, or raise UserError for tensors of special kinds."""
    if x.is_nested or x.layout is not torch.strided:
        cure = "Pad the samples to one shape" if x.is_nested else "Give x.to_dense()"
        raise _unfit(what, f"a {'nested' if x.is_nested else 'sparse'} tensor", cure)
    if x.is_quantized:
        raise _unfit(what, f"a quantized tensor ({x.dtype})", "Give x.dequantize()")
    if x.is_complex():
        raise _unfit(what, f"{x.dtype}", "Give real and imaginary parts as two features, as torch.view_as_real does")
    if x.device.type == "meta":
        raise _unfit(what, "a tensor on the device 'meta', which has no values", "Give one that has values")
    if x.dtype is torch.uint64:
        return _narrowed(x.cpu().numpy(), what)
    # Floats of 8 bits are made for storage: torch has hardly any operations for them.
    if x.is_floating_point() and x.element_size() == 1:
        return x.float()
    return x.to(_WIDER[x.dtype]) if x.dtype in _WIDER else x


def _from_numpy(array: "np.ndarray[Any, Any]", values: Any, what: str) -> Tensor:
    """Return an array of numbers as a tensor of a type that torch computes with; raise UserError for other arrays."""
    kind = array.dtype.kind
    if kind not in "biuf":
        kind_of_values = (
            f"{array.dtype}" if isinstance(values, np.ndarray) else f"{type(values).__name__} of {array.dtype}"
        )
        if kind == "O" and array.ndim:
            inner = sorted({type(value).__name__ for value in array.reshape(-1)[:1000]})
            kind_of_values += f" ({', '.join(inner[:4])})"
        raise _unfit(what, kind_of_values, _CURES.get(kind, "Give the columns of numbers, as one array"))
    if array.dtype == np.uint64:
        return _narrowed(array, what)
    if kind == "f" and array.dtype.itemsize >= 8:
        with np.errstate(over="ignore"):  # infinite values are refused with the samples
            array = array.astype(np.float32)
    narrow = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.astype(narrow.get(array.dtype, array.dtype), copy=False)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)  # numpy gives a number a dimension


def _narrowed(array: "np.ndarray[Any, Any]", what: str) -> Tensor:
    """Convert an array of uint64 to an int64 tensor, or raise UserError if a value does not fit."""
    if array.size and int(array.max()) >= 1 << 63:
        raise _unfit(what, f"uint64 with the value {int(array.max())}", f"Values must be below {1 << 63}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64))).reshape(array.shape)


def _refuse_masked(values: Any, what: str) -> None:
    """Raise UserError if a masked array, or a list of arrays, has masked values: numpy would fill them in silently."""
    parts = values if isinstance(values, list | tuple) else [values]
    masked = sum(int(np.ma.getmaskarray(part).sum()) for part in parts if isinstance(part, np.ma.MaskedArray))
    if masked:
        raise _unfit(
            what,
            f"a masked array, of which {masked:,} values are masked",
            "Fill them, as x.filled(0) does, or leave those samples out",
        )


def _unfit(what: str, found: str, cure: str) -> UserError:
    return UserError(f"{what}: found {found}, allowed: an array or tensor of numbers. {cure}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def to_inputs(values: Any, what: str, samples: int | None = None, *, lists: bool = False) -> Inputs:
    """Convert samples to the input of a net: one tensor, a tuple of tensors, or tensors by name; see `bpfree.inputs`.

    A tuple of arrays with one entry for each sample is several inputs. Any other sequence is one array.

    Args:
        values: an array, a tuple of arrays, or a mapping of arrays by the names of `forward`'s arguments.
        what: the values as the user knows them, for errors.
        samples: N; None if it is not known.
        lists: True for a batch of a DataLoader, which turns tuples into lists: then a list, too, is several inputs.

    Raises:
        UserError: see `to_tensor`; a name cannot be the name of an argument, or a tuple can be read in two ways.

    Example:
        >>> [part.shape for part in to_inputs((np.zeros((4, 2)), np.zeros((4, 3))), "x")]
        [torch.Size([4, 2]), torch.Size([4, 3])]
    """
    if isinstance(values, Mapping):
        for name in values:
            if not isinstance(name, str) or not name.isidentifier():
                raise UserError(f"{what}: found the name {name!r}, allowed: names of arguments of the net's forward")
        if not values:
            raise UserError(f"{what}: found a mapping without samples, allowed: arrays by name")
        return {name: to_tensor(value, f"{what} '{name}'") for name, value in values.items()}
    if isinstance(values, tuple) or (lists and isinstance(values, list)):
        lengths = [_length(part) for part in values]
        if values and None not in lengths and (samples is None or set(lengths) == {samples}):
            if len(values) == samples and samples > 1 and not lists:
                raise UserError(
                    f"{what}: found {len(values)} arrays with {samples} entries each, which may be {samples} "
                    f"samples or {samples} inputs. For samples give one array, as numpy.stack makes it; for inputs a "
                    "dict by name"
                )
            if len(values) > 1:
                return tuple(to_tensor(part, f"{what}, input {i}") for i, part in enumerate(values))
            values = values[0]
    return to_tensor(values, what)


def _length(part: Any) -> int | None:
    """Return the length of an array with at least one dimension, and None for anything else."""
    shape: tuple[int, ...] = getattr(part, "shape", ())
    return int(shape[0]) if len(shape) else None


def channels_first(x: Tensor) -> Tensor:
    """Return images of bytes [N, H, W, C] as [N, C, H, W]; other samples stay as they are.

    Example:
        >>> channels_first(torch.zeros(2, 8, 9, 3, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 9])
    """
    return x.permute(0, 3, 1, 2).contiguous() if has_channels_last(x) else x


def has_channels_last(x: Tensor) -> bool:
    """Return True if samples are images of bytes [N, H, W, C], by their shape: C is in `CHANNELS`."""
    return x.dtype == torch.uint8 and x.dim() == 4 and x.shape[3] in CHANNELS and x.shape[1] > max(CHANNELS)


def in_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return images [N, H, W, C] or [N, H, W] in the layout of training, [N, C, H, W]; other samples stay as they are.

    Args:
        x: samples to predict for.
        shape: the shape of a training sample.

    Example:
        >>> in_shape(torch.zeros(2, 8, 9), (1, 8, 9)).shape
        torch.Size([2, 1, 8, 9])
    """
    found = tuple(x.shape[1:])
    if found == shape or len(shape) != 3:
        return x
    if len(found) == 3 and (found[2], *found[:2]) == shape:
        return x.permute(0, 3, 1, 2).contiguous()
    return x.unsqueeze(1) if found == shape[1:] and shape[0] == 1 else x
