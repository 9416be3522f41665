"""How forward passes are computed: the number type of products, and the library that computes them.

Float32 matrix products at full speed on AMD processors.

There torch hands float32 products to MKL, which runs them at half the speed of oneDNN (97 against 205 GFLOP/s a core on
an EPYC, at a relative error of 2.5e-7 against 4.0e-7). torch has no switch between the two but the one that also
permits oneDNN to round to bfloat16, which it does where a processor has AMX. So the switch is thrown only on an AMD
processor on which a check finds float32 accuracy, only while a trainer computes, and is put back afterwards.
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
"""See `Trainer`."""

log = logging.getLogger(__name__)

_TOLERANCE = 2e-6  # relative; bfloat16 would give 3e-3
_SHAPES = ((128, 1000, 1000), (256, 784, 64), (33, 77, 129))


def resolve(precision: Precision, device: torch.device) -> Precision:
    """The precision to compute in; "auto" is "bfloat16" where the device multiplies it in hardware, else "float32".

    A log line tells the choice; a warning tells where bfloat16 is asked for and emulated.
    """
    fast = precision in ("auto", "bfloat16") and multiplies_bfloat16(device)
    if precision == "auto":
        chosen: Precision = "bfloat16" if fast else "float32"
        log.info("precision: %s, since %s bfloat16 in hardware", chosen, _who(device, fast))
        return chosen
    if precision == "bfloat16" and not fast:
        log.warning(
            "precision: bfloat16, but %s it in hardware; a step took 11 times as long as in float32 where this was "
            "measured. Use precision=auto or float32",
            _who(device, fast),
        )
    return precision


def _who(device: torch.device, fast: bool) -> str:
    name = "processor" if device.type == "cpu" else f"device ({device.type})"
    return f"this {name} {'multiplies' if fast else 'does not multiply'}"


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within it, forward passes are computed so.

    Args:
        precision: "float32", by whatever library is accurate and fast; "float32_torch", as torch would; "bfloat16",
            under autocast. Not "auto", of which `resolve` makes one of these.
        device: on which.
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
    """Within it, float32 products on the CPU are as fast as float32 accuracy allows; afterwards all is as before."""
    switch = _switch()
    if switch is None or not keeps_accuracy():
        yield
        return
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@cache
def keeps_accuracy() -> bool:
    """Whether this processor gains and float32 accuracy is kept; checked once, by products of several shapes.

    Nothing is timed, so the answer is the same on every call and every start on a machine.
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
    """What torch lets one set: an object with `fp32_precision`, of torch 2.9 and newer, or None."""
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
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())
