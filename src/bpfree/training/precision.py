"""The arithmetic of forward passes: the number type of matrix products, and the library that computes them.

On AMD processors torch gives float32 products to MKL, which is half as fast there as oneDNN: 97 against 205 GFLOP/s per
core on an EPYC, at a relative error of 2.5e-7 against 4.0e-7. torch has only one switch from MKL to oneDNN, and this
switch also permits oneDNN to round to bfloat16. oneDNN does so on processors with AMX. So we use the switch only on an
AMD processor, only after a check has found float32 accuracy, and only while a trainer computes.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from bpfree.training.processor import multiplies_bfloat16

Precision = Literal["auto", "float32", "float32_torch", "bfloat16"]
"""Number types of forward passes; `bpfree.training.compute.Compute` describes them."""

log = logging.getLogger(__name__)

_TOLERANCE = 2e-6  # relative; bfloat16 would give 3e-3
# Several shapes, since oneDNN may choose another kernel for another shape.
_SHAPES = ((128, 1000, 1000), (256, 784, 64), (33, 77, 129))


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to compute in; "auto" becomes "bfloat16" or "float32".

    "auto" is bfloat16 where the device multiplies it in hardware. A line in the log names this choice. A warning is
    logged if the user asks for bfloat16 and the device only emulates it.

    Args:
        precision: the user's choice.
        device: the device of the net.
    """
    fast = precision in ("auto", "bfloat16") and multiplies_bfloat16(device)
    if precision == "auto":
        chosen: Precision = "bfloat16" if fast else "float32"
        log.info("precision: %s, since %s bfloat16 in hardware", chosen, _ability(device, fast))
        return chosen
    if precision == "bfloat16" and not fast:
        log.warning(
            "precision: bfloat16, but %s it in hardware; a step took 11 times as long as in float32 where this was "
            "measured. Use precision=auto or float32",
            _ability(device, fast),
        )
    return precision


def _ability(device: torch.device, fast: bool) -> str:
    name = "processor" if device.type == "cpu" else f"device ({device.type})"
    return f"this {name} {'multiplies' if fast else 'does not multiply'}"


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which forward passes are computed in a precision.

    Args:
        precision: "float32": by the library that is accurate and fast. "float32_torch": by the library that torch
            chooses. "bfloat16": under autocast. Not "auto"; `resolve` turns it into one of these.
        device: the device of the net.
    """
    assert precision != "auto"
    if precision == "float32":
        return fast_float32()
    if precision == "float32_torch":
        return nullcontext()
    # The cache of casts does not see weights that a rule changes in place during the step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


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
