"""How forward passes are computed."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from bpfree.matmul import fast_float32
from bpfree.processor import multiplies_bfloat16

Precision = Literal["auto", "float32", "float32_torch", "bfloat16"]
"""See `Trainer`."""

log = logging.getLogger(__name__)


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
