"""Find the device that computes, by the name that a config gives."""

import torch

from bpfree.errors import UserError
from bpfree.mesh import launched, local_rank, processes_here


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes a GPU if the machine has one.

    Of several processes on a machine, "auto" gives each one its own GPU.

    Args:
        name: "auto", or a name that torch knows, such as "cpu", "cuda:1" or "mps".

    Returns:
        The device. A tensor has been made on it, so it works.

    Raises:
        UserError: this machine does not have the device, or has too few GPUs for its processes.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = _fastest()
    try:
        device = torch.device(name)
        # torch.device accepts any well-formed name, such as cuda:7; only an allocation shows that the device exists.
        torch.empty(0, device=device)
    # Which error torch raises depends on how it was built: without CUDA it is an AssertionError, without a backend's
    # module an AttributeError or ImportError.
    except (RuntimeError, AssertionError, AttributeError, ImportError) as error:
        raise UserError(f"device: found '{name}', which this machine does not have. Allowed: auto, cpu") from error
    return device


def _fastest() -> str:
    """Return the name of a GPU for this process; "cpu" if there is none."""
    if torch.cuda.is_available():
        gpus, processes = torch.cuda.device_count(), processes_here()
        if processes > gpus:
            raise UserError(
                f"device: found 'auto' in {processes} processes on a machine with GPUs for {gpus}, allowed: a GPU for "
                "each. Use fewer processes, or train.device=cpu"
            )
        return "cuda" if launched() == 1 else f"cuda:{local_rank()}"
    # Processes cannot exchange tensors of MPS.
    return "mps" if torch.backends.mps.is_available() and launched() == 1 else "cpu"
