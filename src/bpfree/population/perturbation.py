"""Distributions of the noise E that members of a population add to the parameters; E is scaled by sigma later."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor

from bpfree.errors import UserError, check_positive
from bpfree.population.source import Source


def add_scaled(base: Tensor, values: Tensor, scale: float | Tensor, out: Tensor) -> Tensor:
    """Write base + scale * values into `out`, and return it.

    Args:
        base: a tensor.
        values: another one, which broadcasts to it.
        scale: a number, or a tensor that broadcasts to `base`.
        out: shaped like `base`. It may be `base`.
    """
    if isinstance(scale, Tensor):
        return torch.addcmul(base, values, scale, out=out)
    return torch.add(base, values, alpha=scale, out=out)


class Sample(ABC):
    """The noise of n members on one parameter."""

    @abstractmethod
    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """Write base + scale * E_index into `out`.

        Args:
            base: the parameter without noise.
            index: the place of the member in this sample.
            scale: sigma and sign: a number, or a tensor that is 0-d or shaped like the parameter.
            out: where to write, shaped like the parameter. It may be `base`.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """Return E of all members, [n, *shape], written out."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i E_i, shaped like the parameter, for weights [n]."""

    @abstractmethod
    def between(self, first: int, end: int) -> Self:
        """Return the members at the places first, ..., end - 1."""

    @abstractmethod
    def followed_by(self, others: Sequence[Self]) -> Self:
        """Return these members and then the members of the others, as one sample."""


class Dense(Sample):
    """Noise that is written out in full.

    Args:
        values: E of n members, [n, *shape].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """Write base + scale * E_index into `out`; see `Sample`."""
        add_scaled(base, self.values[index], scale, out)

    def dense(self) -> Tensor:
        """Return E of all members, [n, *shape]."""
        return self.values

    def combine(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i E_i, shaped like the parameter, for weights [n]."""
        if len(weights) == 1:  # there is nothing to sum
            return self.values[0] * weights[0]
        combined: Tensor = torch.tensordot(weights, self.values, 1)  # [n] times [n, *shape]
        return combined

    def between(self, first: int, end: int) -> Self:
        """Return the members at the places first, ..., end - 1."""
        return type(self)(self.values[first:end])

    def followed_by(self, others: Sequence[Self]) -> Self:
        """Return these members and then the members of the others, as one sample."""
        return type(self)(torch.cat([self.values, *(other.values for other in others)]))


class Factored(Sample):
    """Noise of low rank, E_i = A_i B_i^T, on a parameter that is read as a matrix [O, I].

    O is the first dimension of the parameter, and I is the product of all others.

    Args:
        a: the factors A of n members, [n, O, r].
        b: the factors B, [n, I, r].
        shape: the shape of the parameter.
    """

    def __init__(self, a: Tensor, b: Tensor, shape: Sequence[int]) -> None:
        self.a, self.b, self.shape = a, b, tuple(shape)

    def add(self, base: Tensor, index: int, scale: float | Tensor, out: Tensor) -> None:
        """Write base + scale * A B^T into `out`; see `Sample`."""
        a, b = self.a[index], self.b[index]
        if isinstance(scale, Tensor):
            assert scale.dim() == 0  # only rules with dense noise have a sigma for each element
            a, scale = a * scale, 1.0
        matrix = (len(a), len(b))
        if out.is_contiguous():  # a parameter in channels_last has no view as a matrix
            torch.addmm(base.view(matrix), a, b.T, alpha=scale, out=out.view(matrix))
        else:
            torch.add(base, (a @ b.T).view(self.shape), alpha=scale, out=out)

    def dense(self) -> Tensor:
        """Return E of all members, [n, *shape], written out."""
        return (self.a @ self.b.transpose(1, 2)).view(-1, *self.shape)  # [n, O, r] [n, r, I]

    def combine(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i A_i B_i^T, shaped like the parameter, by one matrix product and without any single E_i."""
        # sum_i w_i A_i B_i^T = [w_1 A_1, ..., w_n A_n] [B_1, ..., B_n]^T, a product over n r columns.
        weighted = (self.a * weights.view(-1, 1, 1)).transpose(0, 1).flatten(1)  # [O, n r]
        return (weighted @ self.b.transpose(0, 1).flatten(1).T).view(self.shape)

    def between(self, first: int, end: int) -> Self:
        """Return the members at the places first, ..., end - 1."""
        return type(self)(self.a[first:end], self.b[first:end], self.shape)

    def followed_by(self, others: Sequence[Self]) -> Self:
        """Return these members and then the members of the others, as one sample."""
        a, b = torch.cat([self.a, *(o.a for o in others)]), torch.cat([self.b, *(o.b for o in others)])
        return type(self)(a, b, self.shape)


class Perturbation(ABC):
    """A distribution of noise on parameters, with mean 0.

    Attributes:
        together: the number of members whose noise comes from one draw. Where a member needs few numbers, one draw for
            many members is faster. It matters on a CPU alone; see `Source`.
    """

    together: int = 1

    @abstractmethod
    def sample(self, like: Tensor, n: int, source: Source) -> Sample:
        """Draw the noise of n members on a parameter.

        Args:
            like: the parameter; the noise has its shape, type and device.
            n: the number of members.
            source: the random numbers. The first dimension of each draw must be n.
        """

    def numbers(self, like: Tensor) -> int:
        """Return how many numbers the noise of one member on a parameter has.

        Args:
            like: the parameter.
        """
        return like.numel()


class Gaussian(Perturbation):
    """Noise that moves each element by N(0, 1)."""

    def sample(self, like: Tensor, n: int, source: Source) -> Dense:
        """Draw N(0, 1) for each element; see `Perturbation`."""
        return Dense(source.normal((n, *like.shape), like))


class MaskedGaussian(Perturbation):
    """Noise that moves each element with probability p, by N(0, 1). The variance of an element is p.

    Args:
        p: the probability that an element moves, in (0, 1].
    """

    def __init__(self, p: float) -> None:
        if not 0 < p <= 1:
            raise UserError(f"p: found {p}, allowed: a probability above 0 and at most 1")
        self.p = p

    def sample(self, like: Tensor, n: int, source: Source) -> Dense:
        """Draw mask * N(0, 1) for each element; see `Perturbation`."""
        noise = source.normal((n, *like.shape), like)
        # For p = 1 no mask is drawn, so the noise is that of `Gaussian` to the bit.
        if self.p < 1:
            noise *= source.bernoulli(self.p, noise.shape, like)
        return Dense(noise)


class Rademacher(Perturbation):
    """Noise that moves each element by +1 or -1.

    Reference: Spall 1992, https://doi.org/10.1109/9.119632.
    """

    def sample(self, like: Tensor, n: int, source: Source) -> Dense:
        """Draw +1 or -1 for each element; see `Perturbation`."""
        return Dense(source.bernoulli(0.5, (n, *like.shape), like).mul_(2).sub_(1))


class LowRank(Perturbation):
    """Noise of low rank on weights: E = A B^T / sqrt(r), with A [O, r] and B [I, r] from N(0, 1).

    Each element has variance 1 as with Gaussian noise, but a member has (O + I) r numbers instead of O I. A weight of
    more than two dimensions, such as a convolution's, is read as a matrix of its first dimension by all others.
    Vectors such as biases move by N(0, 1).

    Reference: EGGROLL, Sarkar et al. 2025, https://arxiv.org/abs/2511.16652.

    Args:
        rank: r.
    """

    # The noise depends on it: another number would change the results of every run with low-rank noise.
    together = 32

    def __init__(self, rank: int) -> None:
        check_positive("rank", rank)
        self.rank = rank

    def sample(self, like: Tensor, n: int, source: Source) -> Sample:
        """Draw A and B for weights, N(0, 1) for vectors; see `Perturbation`."""
        if like.dim() < 2:
            return Dense(source.normal((n, *like.shape), like))
        o, i = len(like), prod(like.shape[1:])
        numbers = source.normal((n, o + i, self.rank), like)
        a, b = numbers[:, :o], numbers[:, o:]
        # An element of A B^T is a sum of r products of variance 1. Its variance is r, so B is divided by sqrt(r).
        return Factored(a, b.div_(self.rank**0.5) if self.rank > 1 else b, like.shape)

    def numbers(self, like: Tensor) -> int:
        """Return how many numbers A and B have, or a vector; see `Perturbation`."""
        return like.numel() if like.dim() < 2 else (len(like) + prod(like.shape[1:])) * self.rank


PERTURBATIONS: dict[str, type[Perturbation]] = {"gaussian": Gaussian, "rademacher": Rademacher}
