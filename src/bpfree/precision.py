"""How forward passes are computed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from bpfree.matmul import fast_float32

Precision = Literal["float32", "float32_torch", "bfloat16"]


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within it, forward passes are computed so.

    Args:
        precision: "float32", by whatever library is accurate and fast; "float32_torch", as torch would; "bfloat16",
            under autocast.
        device: on which.
    """
    if precision == "float32":
        return fast_float32()
    if precision == "float32_torch":
        return nullcontext()
    # The cache of casts does not see weights that a rule changes in place during the step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
