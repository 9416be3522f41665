"""Initialisations of feedback matrices."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.errors import check_choice

Feedback = Literal["uniform", "kaiming", "xavier", "lecun", "orthogonal"]


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
