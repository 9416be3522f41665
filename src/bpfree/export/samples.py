"""Samples that are like those of a training in form and range, to trace and to check an exported file with."""

import torch
from torch import Tensor

from bpfree.data.scaling import Scaling
from bpfree.noise import Noise


def samples_like(scaling: Scaling, count: int) -> tuple[Tensor, ...]:
    """Return random raw samples of each input, [count, ...].

    Args:
        scaling: the form of raw samples, one input or several.
        count: the number of samples.

    Example:
        >>> scaling = Scaling((1, 2, 2), (3.0,), (1.0,), 255.0, "uint8", (0.0, 1.0))
        >>> [(x.shape, x.dtype) for x in samples_like(scaling, 3)]
        [(torch.Size([3, 1, 2, 2]), torch.uint8)]
    """
    parts = dict(scaling.inputs) or {"input": scaling}
    return tuple(_one(part, count, Noise().fold("export", name)) for name, part in parts.items())


def _one(scaling: Scaling, count: int, noise: Noise) -> Tensor:
    dtype: torch.dtype = getattr(torch, scaling.dtype)
    shape = (count, *scaling.shape)
    if scaling.columns is not None:
        draws = noise.randn(*shape, dtype=torch.float64)
        return (draws * torch.tensor(scaling.std) + torch.tensor(scaling.mean)).to(dtype)
    shares = noise.rand(*shape, dtype=torch.float64)
    if dtype == torch.bool:
        return shares < 0.5
    low, high = (0.0, scaling.white) if dtype == torch.uint8 else scaling.limits
    if dtype.is_floating_point or dtype == torch.uint8:
        # Faint samples beside strong ones: for strong noise alone a net may be so sure that errors vanish.
        contrast = noise.fold("contrast").rand(count, *[1] * len(scaling.shape), dtype=torch.float64)
        return (low + shares * contrast * (high - low)).to(dtype)
    # Integers from low to high, both of them as likely as the others.
    return (low + shares * (high - low + 1)).floor().to(dtype)
