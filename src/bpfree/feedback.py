"""Initialisations of fixed feedback matrices."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bpfree.errors import check_choice


def _uniform(matrix: Tensor) -> Tensor:
    bound = matrix.shape[1] ** -0.5
    return nn.init.uniform_(matrix, -bound, bound)


def _lecun_normal(matrix: Tensor) -> Tensor:
    return nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)


FEEDBACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": _uniform,
    "kaiming": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "lecun": _lecun_normal,
    "orthogonal": nn.init.orthogonal_,
}
"""uniform: U(+-1/sqrt(H)) (Nokland 2016); kaiming: kaiming_uniform (DRTP's authors); xavier: xavier_uniform (BioTorch);
lecun: N(0, 1/H); orthogonal: orthonormal rows."""


def feedback_matrix(name: str, dim: int, features: int, like: Tensor) -> Tensor:
    """B [D, H], drawn by torch's global generator, of the type and device of `like`.

    Raises:
        UserError: `name` is not in FEEDBACKS.
    """
    check_choice("feedback", name, FEEDBACKS)
    drawn = FEEDBACKS[name](torch.empty(dim, features))
    return drawn.to(device=like.device, dtype=like.dtype)
