"""The arithmetic of forward passes: the number type of matrix products, and the library that computes them.

On AMD processors torch gives float32 products to MKL, which is half as fast there as oneDNN: 97 against 205 GFLOP/s per
core on an EPYC, at a relative error of 2.5e-7 against 4.0e-7. torch has only one switch from MKL to oneDNN, and this
switch also permits oneDNN to round to bfloat16. oneDNN does so on processors with AMX. So we use the switch only on an
AMD processor, only after a check has found float32 accuracy, and only while a trainer computes.

A net with attention is left to torch. Its kernel of attention on a CPU multiplies many small matrices, for which oneDNN
prepares itself each time: with 64 steps and 32 features in a head it took 33 ms by the switch and 6 ms without.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from bpfree.errors import UserError
from bpfree.training.processor import has_tf32, multiplies_bfloat16

Precision = Literal["auto", "float32", "float32_torch", "tf32", "bfloat16"]
"""Number types of forward passes; `bpfree.training.compute.Compute` describes them."""

log = logging.getLogger(__name__)

_TOLERANCE = 2e-6  # relative; bfloat16 would give 3e-3
# Several shapes, since oneDNN may choose another kernel for another shape.
_SHAPES = ((128, 1000, 1000), (256, 784, 64), (33, 77, 129))


def resolve(precision: Precision, device: torch.device, net: nn.Module | None = None) -> Precision:
    """Return the precision to compute in; "auto" becomes "bfloat16" or "float32".

    On a CPU "float32" becomes "float32_torch" for a net with attention, whose kernel is slow with the other library.

    "auto" is bfloat16 where the device multiplies it in hardware. A line in the log names this choice. A warning is
    logged if the user asks for bfloat16 and the device only emulates it, or for TF32 and the device does not have it;
    then it is float32.

    Args:
        precision: the user's choice.
        device: the device of the net.
        net: the net; None to take "float32" as it is.
    """
    fast = precision in ("auto", "bfloat16") and multiplies_bfloat16(device)
    if precision == "auto":
        chosen: Precision = "bfloat16" if fast else "float32"
        log.info("precision: %s, since %s bfloat16 in hardware", chosen, _ability(device, fast))
        return resolve(chosen, device, net) if chosen == "float32" else chosen
    if precision == "bfloat16" and not fast:
        log.warning(
            "precision: bfloat16, but %s it in hardware; a step took 11 times as long as in float32 where this was "
            "measured. Use precision=auto or float32",
            _ability(device, fast),
        )
    if precision == "tf32" and not has_tf32(device):
        log.warning(
            "precision: float32, since this %s does not have TF32. NVIDIA's GPUs have it from Ampere on", _name(device)
        )
        return "float32"
    if precision == "float32" and device.type == "cpu" and net is not None and has_attention(net):
        return "float32_torch"
    return precision


def has_attention(net: nn.Module) -> bool:
    """Return True if a class of the net's modules has "Attention" in its name, as in torch, bpfree and Hugging Face.

    Args:
        net: any module.
    """
    return any("Attention" in type(module).__name__ for module in net.modules())


def refuse_float16(argument: str, found: object) -> None:
    """Raise UserError if a precision is "float16".

    Args:
        argument: the name of the argument, for the message.
        found: the value.

    Raises:
        UserError: it is "float16".
    """
    # Scaled losses would make it possible for rules that get all gradients from a loss. Many rules write some gradients
    # themselves, and a segment that steps at once would have to be skipped by itself.
    if found == "float16":
        raise UserError(
            f"{argument}: found 'float16', allowed: {', '.join(get_args(Precision))}. In float16 small gradients are "
            "lost unless each loss is scaled, and rules that write gradients by themselves have no loss to scale. Use "
            "bfloat16, which has the range of float32, or tf32"
        )


def _ability(device: torch.device, fast: bool) -> str:
    return f"this {_name(device)} {'multiplies' if fast else 'does not multiply'}"


def _name(device: torch.device) -> str:
    return "processor" if device.type == "cpu" else f"device ({device.type})"


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which forward passes are computed in a precision.

    Args:
        precision: "float32": by the library that is accurate and fast. "float32_torch": by the library that torch
            chooses. "tf32": on CUDA, operands of float32 products are rounded to TF32. "bfloat16": under autocast. Not
            "auto"; `resolve` turns it into one of these.
        device: the device of the net.
    """
    assert precision != "auto"
    if precision == "float32":
        return fast_float32()
    if precision == "float32_torch":
        return nullcontext()
    if precision == "tf32":
        return _tf32()
    # The cache of casts does not see weights that a rule changes in place during the step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def _tf32() -> Iterator[None]:
    """Round operands of float32 products and convolutions on CUDA to TF32 within the block."""
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    # The new names since torch 2.9 alone: where a program sets both, torch refuses to read the old one.
    is_new = hasattr(products, "fp32_precision")
    name, value = ("fp32_precision", "tf32") if is_new else ("allow_tf32", True)
    switches = [products, cudnn.conv, cudnn.rnn] if is_new else [products, cudnn]
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, value)
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            setattr(switch, name, old)


@contextmanager
def fast_float32() -> Iterator[None]:
    """Compute float32 products on the CPU within the block as fast as float32 accuracy allows.

    `bpfree.Trainer` does so by itself. This function is for code that calls `rule.gradients` directly. Afterwards torch
    is set as it was before.

    Example:
        >>> with fast_float32():
        ...     product = torch.ones(2, 3) @ torch.ones(3, 1)
    """
    switch = _switch()
    if switch is None or not keeps_accuracy():
        yield
        return
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"  # permits bfloat16, but keeps_accuracy has seen that it is not used
    try:
        yield
    finally:
        switch.fp32_precision = before


@cache
def keeps_accuracy() -> bool:
    """Return True if the switch makes float32 products faster on this processor, and they keep float32 accuracy.

    The accuracy is checked once, by products of several shapes. Nothing is timed: the answer depends on the machine
    alone, and so do the bits of a training.
    """
    switch = _switch()
    if switch is None or not _is_amd():
        return False
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        return all(_error(*shape) < _TOLERANCE for shape in _SHAPES)
    finally:
        switch.fp32_precision = before


def _switch() -> Any:
    """Return the object of torch whose `fp32_precision` is the switch, or None before torch 2.9."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    switch = getattr(torch.backends.mkldnn, "matmul", None)
    return switch if hasattr(switch, "fp32_precision") else None


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _error(rows: int, inner: int, columns: int) -> float:
    """Return the relative error of a float32 product [rows, inner] @ [inner, columns]."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())
