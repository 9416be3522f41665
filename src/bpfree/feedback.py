"""Initialisations of feedback matrices: random, or aligned with the net."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.cut import unchanged_buffers
from bpfree.errors import check_choice
from bpfree.noise import Noise

Feedback = Literal["uniform", "kaiming", "xavier", "lecun", "orthogonal"]
AlignedFeedback = Feedback | Literal["aligned"]

ALIGNED = "aligned"
"""Feedback is no random matrix but the one that backprop would use, as it is when the rule is bound."""


def _uniform(matrix: Tensor) -> Tensor:
    bound = matrix[0].numel() ** -0.5
    return nn.init.uniform_(matrix, -bound, bound)


def _lecun_normal(matrix: Tensor) -> Tensor:
    return nn.init.normal_(matrix, std=matrix[0].numel() ** -0.5)


FEEDBACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": _uniform,
    "kaiming": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "lecun": _lecun_normal,
    "orthogonal": nn.init.orthogonal_,
}
"""For a matrix [rows, H] (a convolution's H counts its kernel). uniform: U(+-1/sqrt(H)) (Nokland 2016); kaiming:
kaiming_uniform (DRTP's authors); xavier: xavier_uniform (BioTorch); lecun: N(0, 1/H); orthogonal: orthonormal rows."""


def random_like(name: str, like: Tensor) -> Tensor:
    """A random matrix of the shape, type and device of `like`, drawn by torch's global generator.

    Raises:
        UserError: `name` is not in FEEDBACKS.
    """
    check_choice("feedback", name, FEEDBACKS)
    drawn = FEEDBACKS[name](torch.empty(like.shape))  # on the CPU in float32: the same numbers everywhere
    return drawn.to(device=like.device, dtype=like.dtype)


def check_feedback(name: str) -> None:
    """Raise UserError unless `name` is in FEEDBACKS or is "aligned"."""
    check_choice("feedback", name, (*FEEDBACKS, ALIGNED))


def mean_jacobians(net: nn.Module, taps: Sequence[str], x: Tensor) -> list[Tensor]:
    """The derivative of the output [D, ...] at each tap, a mean over samples: on a linear net the product of weights.

    Args:
        net: as it is trained (dropout, batch statistics); left as it was.
        taps: names of submodules, in the order in which they run.
        x: [B, ...]; takes the memory of a step of backprop, and D backward passes.
    """
    tapped: list[Tensor] = []

    def keep(module: nn.Module, args: object, h: Tensor) -> Tensor:
        tapped.append(h if h.requires_grad else h.detach().requires_grad_())
        return tapped[-1]

    handles = [net.get_submodule(tap).register_forward_hook(keep) for tap in taps]
    try:
        with unchanged_buffers(net), Noise().global_rng(x.device), torch.enable_grad():
            out = net(x)
    finally:
        for handle in handles:
            handle.remove()
    outputs = out.flatten(1).sum(0)  # the D outputs, each summed over samples
    rows = [torch.autograd.grad(each, tapped, retain_graph=True) for each in outputs] if tapped else []
    return [torch.stack([grad.mean(0) for grad in grads]) for grads in zip(*rows, strict=True)]
