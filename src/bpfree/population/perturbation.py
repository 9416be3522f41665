"""How members of a population differ from the parameters they surround: unit noise E, to be scaled by sigma."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor

from bpfree.errors import UserError, check_positive


class Sample(ABC):
    """The noise of n members on one parameter."""

    @abstractmethod
    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """Out = base + scale * E_index; base, out and a scale that is a tensor are shaped like the parameter."""

    @abstractmethod
    def dense(self) -> Tensor:
        """E, [n, *shape]."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """sum_i w_i E_i, shaped like the parameter, of weights [n]."""

    @abstractmethod
    def between(self, first: int, end: int) -> Self:
        """The members from one place to before another."""

    @abstractmethod
    def followed_by(self, others: Sequence[Self]) -> Self:
        """These members and then those of the others."""


class Dense(Sample):
    """Noise written out.

    Args:
        values: [n, *shape].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """See the base class."""
        if isinstance(scale, Tensor):
            torch.addcmul(base, self.values[index], scale, out=out)
        else:
            torch.add(base, self.values[index], alpha=scale, out=out)

    def dense(self) -> Tensor:
        """See the base class."""
        return self.values

    def combine(self, weights: Tensor) -> Tensor:
        """See the base class."""
        if len(weights) == 1:
            return self.values[0] * weights[0]
        combined: Tensor = torch.tensordot(weights, self.values, 1)
        return combined

    def between(self, first: int, end: int) -> Self:
        """See the base class."""
        return type(self)(self.values[first:end])

    def followed_by(self, others: Sequence[Self]) -> Self:
        """See the base class."""
        return type(self)(torch.cat([self.values, *(other.values for other in others)]))


class Factored(Sample):
    """Noise E_i = A_i B_i^T of a parameter read as a matrix [O, I], its first dimension against the rest.

    Args:
        a: [n, O, r].
        b: [n, I, r].
        shape: of the parameter.
    """

    def __init__(self, a: Tensor, b: Tensor, shape: Sequence[int]) -> None:
        self.a, self.b, self.shape = a, b, tuple(shape)

    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """See the base class."""
        assert not isinstance(scale, Tensor)
        a, b = self.a[index], self.b[index]
        matrix = (len(a), len(b))
        if out.is_contiguous():
            torch.addmm(base.view(matrix), a, b.T, alpha=scale, out=out.view(matrix))
        else:
            torch.add(base, (a @ b.T).view(self.shape), alpha=scale, out=out)

    def dense(self) -> Tensor:
        """See the base class."""
        return (self.a @ self.b.transpose(1, 2)).view(-1, *self.shape)

    def combine(self, weights: Tensor) -> Tensor:
        """See the base class; one matrix product, without any E_i."""
        weighted = (self.a * weights.view(-1, 1, 1)).transpose(0, 1).flatten(1)  # [O, n r]
        return (weighted @ self.b.transpose(0, 1).flatten(1).T).view(self.shape)

    def between(self, first: int, end: int) -> Self:
        """See the base class."""
        return type(self)(self.a[first:end], self.b[first:end], self.shape)

    def followed_by(self, others: Sequence[Self]) -> Self:
        """See the base class."""
        a, b = torch.cat([self.a, *(o.a for o in others)]), torch.cat([self.b, *(o.b for o in others)])
        return type(self)(a, b, self.shape)


class Perturbation(ABC):
    """A distribution of noise on parameters, of mean 0.

    Attributes:
        together: how many members draw from one key: few numbers are drawn faster at once.
    """

    together: int = 1

    @abstractmethod
    def sample(self, like: Tensor, n: int, generator: torch.Generator) -> Sample:
        """Noise of n members on a parameter, of its type and device."""


class Gaussian(Perturbation):
    """Each element by N(0, 1)."""

    def sample(self, like: Tensor, n: int, generator: torch.Generator) -> Dense:
        """See the base class."""
        return Dense(_normal((n, *like.shape), like, generator))


class MaskedGaussian(Perturbation):
    """Each element moves with probability p, by N(0, 1); its variance is p.

    Args:
        p: probability that an element moves, in (0, 1].
    """

    def __init__(self, p: float) -> None:
        if not 0 < p <= 1:
            raise UserError(f"p: found {p}, allowed: a probability above 0 and at most 1")
        self.p = p

    def sample(self, like: Tensor, n: int, generator: torch.Generator) -> Dense:
        """Mask * N(0, 1)."""
        noise = _normal((n, *like.shape), like, generator)
        if self.p < 1:
            noise *= torch.empty_like(noise).bernoulli_(self.p, generator=generator)
        return Dense(noise)


class Rademacher(Perturbation):
    """Each element by +1 or -1 (Spall 1992, https://doi.org/10.1109/9.119632)."""

    def sample(self, like: Tensor, n: int, generator: torch.Generator) -> Dense:
        """See the base class."""
        values = torch.empty((n, *like.shape), dtype=like.dtype, device=like.device)
        return Dense(values.bernoulli_(0.5, generator=generator).mul_(2).sub_(1))


class LowRank(Perturbation):
    """E = A B^T / sqrt(r) for weights, with A [O, r] and B [I, r] from N(0, 1); vectors move by N(0, 1).

    Each element has variance 1, as of a Gaussian, but a member has (O + I) r numbers instead of O I (EGGROLL, Sarkar et
    al. 2025, https://arxiv.org/abs/2511.16652). A weight of more than two dimensions, such as a convolution's, is read
    as a matrix, its first dimension against the rest.

    Args:
        rank: r.
    """

    together = 32

    def __init__(self, rank: int) -> None:
        check_positive("rank", rank)
        self.rank = rank

    def sample(self, like: Tensor, n: int, generator: torch.Generator) -> Sample:
        """See the base class."""
        if like.dim() < 2:
            return Dense(_normal((n, *like.shape), like, generator))
        o, i = len(like), prod(like.shape[1:])
        numbers = _normal((n, o + i, self.rank), like, generator)
        return Factored(numbers[:, :o], numbers[:, o:].div_(self.rank**0.5), like.shape)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)


PERTURBATIONS: dict[str, type[Perturbation]] = {"gaussian": Gaussian, "rademacher": Rademacher}
