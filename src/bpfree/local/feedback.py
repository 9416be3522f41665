"""Initialisations of feedback matrices: random, or aligned with the net."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bpfree.errors import check_choice
from bpfree.inputs import Inputs, features_of, forward, with_features
from bpfree.local.segments import rehearsal
from bpfree.nets.acceptance import eager
from bpfree.noise import Noise, counts

Feedback = Literal["uniform", "kaiming", "xavier", "lecun", "orthogonal"]
AlignedFeedback = Feedback | Literal["aligned"]

_ODD = np.uint64(0x0101010101010101)

ALIGNED = "aligned"
"""The name of feedback that is the matrix which backprop would use at the moment when the rule is bound."""


def _fans(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[1:].numel(), len(matrix) * matrix.shape[2:].numel()


BOUNDS: dict[str, Callable[[Tensor], float]] = {
    "uniform": lambda matrix: _fans(matrix)[0] ** -0.5,
    "kaiming": lambda matrix: (6 / _fans(matrix)[0]) ** 0.5,
    "xavier": lambda matrix: (6 / sum(_fans(matrix))) ** 0.5,
}
"""By name, the bound b of matrices that are drawn from U(-b, b)."""


def _uniform(name: str, matrix: Tensor) -> Tensor:
    bound = BOUNDS[name](matrix)
    return nn.init.uniform_(matrix, -bound, bound)


def _lecun_normal(matrix: Tensor) -> Tensor:
    return nn.init.normal_(matrix, std=_fans(matrix)[0] ** -0.5)


FEEDBACKS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(_uniform, name) for name in BOUNDS},
    "lecun": _lecun_normal,
    "orthogonal": nn.init.orthogonal_,
}
"""For a matrix [rows, H] (a convolution's H counts its kernel). uniform: U(+-1/sqrt(H)) (Nokland 2016); kaiming:
kaiming_uniform (DRTP's authors); xavier: xavier_uniform (BioTorch); lecun: N(0, 1/H); orthogonal: orthonormal rows."""


def random_like(name: str, like: Tensor) -> Tensor:
    """Return a random matrix, drawn by torch's global generator.

    Args:
        name: a name in FEEDBACKS.
        like: gives the shape, type, device and memory order.

    Raises:
        UserError: `name` is not in FEEDBACKS.
    """
    check_choice("feedback", name, FEEDBACKS)
    drawn = FEEDBACKS[name](torch.empty(like.shape))  # on the CPU in float32: the same numbers everywhere
    return torch.empty_like(like).copy_(drawn)


def random_magnitudes(name: str, like: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """Draw the magnitudes of `random_like` by a key, fast enough for every step. The signs have no meaning.

    On a CPU a magnitude is the middle of one of 128 equal parts of the range 0 to b, so that 7 random bits are enough:
    drawing a float for each weight would take longer than the backward pass of a small net.

    Args:
        name: a name in FEEDBACKS.
        like: gives the shape, type, device and memory order.
        noise: the key.

    Returns:
        A tensor like `like`, and the factor that it must still be multiplied by.
    """
    drawn: Tensor
    if counts(like.device) and (name in BOUNDS or name == "lecun"):
        draw, unit = (noise.rand, BOUNDS[name](like)) if name in BOUNDS else (noise.randn, _fans(like)[0] ** -0.5)
        drawn = draw(like.numel(), device=like.device, dtype=like.dtype)
    elif name not in BOUNDS:
        with noise.global_rng():
            return random_like(name, like), 1.0
    else:
        words = noise.words(-(-like.numel() // 8))
        words |= _ODD  # every byte is now 1, 3, .. 255
        drawn = torch.from_numpy(words.view(np.uint8)[: like.numel()]).to(like.dtype)
        unit = BOUNDS[name](like) / 256
    return drawn.as_strided(like.shape, like.stride()) if _is_dense(like) else drawn.view(like.shape), unit


def _is_dense(tensor: Tensor) -> bool:
    """True if a tensor lies in one piece of memory, in whatever order."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def check_feedback(name: str) -> None:
    """Raise UserError unless `name` is in FEEDBACKS or is "aligned".

    Args:
        name: the name that a user gave.
    """
    check_choice("feedback", name, (*FEEDBACKS, ALIGNED))


def mean_jacobians(net: nn.Module, taps: Sequence[str], x: Inputs) -> list[Tensor]:
    """Return the derivative of the output at each tap, a mean over samples. On a linear net it is a product of weights.

    Args:
        net: as it is trained (dropout, batch statistics); left as it was.
        taps: names of submodules, in the order in which they run.
        x: [B, ...], as `bpfree.inputs.forward` takes it. This needs the memory of a step of backprop and the time of D
            backward passes.

    Returns:
        For each tap, a tensor [D, ...] with the shape of one sample's output there behind D.
    """
    tapped: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: object) -> Any:
        if len(tapped) < len(taps) and (h := features_of(out)) is not None:  # else checkpointing runs it again
            tapped.append(h if h.requires_grad else h.detach().requires_grad_())
            return with_features(out, tapped[-1])
        return None

    handles = [net.get_submodule(tap).register_forward_hook(keep) for tap in taps]
    try:
        with rehearsal(net, x), eager():
            outputs = forward(net, x).flatten(1).sum(0)  # the D outputs, each summed over samples
            # before the buffers change back, since batch norm's derivative looks at them
            rows = [torch.autograd.grad(each, tapped, retain_graph=True) for each in outputs] if tapped else []
    finally:
        for handle in handles:
            handle.remove()
    return [torch.stack([grad.mean(0) for grad in grads]) for grads in zip(*rows, strict=True)]
