"""Find the device that computes, by the name that a config gives."""

import torch

from bpfree.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes a GPU if the machine has one.

    Args:
        name: "auto", or a name that torch knows, such as "cpu", "cuda:1" or "mps".

    Returns:
        The device. A tensor has been made on it, so it works.

    Raises:
        UserError: this machine does not have the device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        name = next((kind for kind, is_available in accelerators if is_available), "cpu")
    try:
        device = torch.device(name)
        # torch.device accepts any well-formed name, such as cuda:7; only an allocation shows that the device exists.
        torch.empty(0, device=device)
    # Which error torch raises depends on how it was built: without CUDA it is an AssertionError, without a backend's
    # module an AttributeError or ImportError.
    except (RuntimeError, AssertionError, AttributeError, ImportError) as error:
        raise UserError(f"device: found '{name}', which this machine does not have. Allowed: auto, cpu") from error
    return device
