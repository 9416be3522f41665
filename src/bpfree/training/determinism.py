"""Settings of torch that decide if two runs on one device give the same bits, set while a trainer computes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch

from bpfree.errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")  # the values with which cuBLAS gives the same bits each time


def prepare(deterministic: bool, device: torch.device) -> None:
    """Set the environment variable that cuBLAS reads when it starts, so that its products are repeatable.

    Args:
        deterministic: False to do nothing.
        device: the device of the training; only CUDA has the variable.

    Raises:
        UserError: the variable has a value that forbids it.
    """
    if not deterministic or device.type != "cuda":
        return
    value = os.environ.setdefault(_WORKSPACE, _REPEATABLE[0])
    if value not in _REPEATABLE:
        raise UserError(
            f"compute.deterministic: the environment variable {_WORKSPACE} is {value}, allowed: "
            f"{' or '.join(_REPEATABLE)}. Set one of them before Python starts"
        )


def settings(deterministic: bool, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which torch computes repeatably, or on CUDA as fast as it can.

    Afterwards torch is set as it was before.

    Args:
        deterministic: True for operations that give the same bits in each run; torch raises an error if an operation
            does not have one. False lets cuDNN time its algorithms on CUDA, and changes nothing on other devices.
        device: the device of the training.
    """
    if deterministic:
        return _repeatable()
    return _fastest() if device.type == "cuda" else nullcontext()


@contextmanager
def _fastest() -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _repeatable() -> Iterator[None]:
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    before = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    algorithms = torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()
    cudnn.deterministic, cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # it finds faults, and takes time
    # Not torch.use_deterministic_algorithms, which imports torch's compiler.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        text = " ".join(str(error).split())
        raise UserError(f"compute.deterministic: found true, but {text}. Use train.deterministic=false") from error
    finally:
        torch._C._set_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
