"""Sources of the random numbers of members.

On a CPU a generator gives them, one stream for a block of members. On other devices they are computed from the keys of
the members, so that one call serves any number of members; see `bpfree.noise.philox`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from bpfree.noise import Noise


class Source(ABC):
    """Random numbers for the noise of n members on a parameter."""

    @abstractmethod
    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw from N(0, 1).

        Args:
            shape: n, and then the shape of what a member gets.
            like: the numbers have its type and device.
        """

    @abstractmethod
    def bernoulli(self, p: float, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw 1 with probability p, else 0; see `normal`."""


class Stream(Source):
    """The stream of a generator.

    Args:
        generator: the generator, on the device of the parameters.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw from N(0, 1); see `Source`."""
        return _empty(shape, like).normal_(generator=self._generator)

    def bernoulli(self, p: float, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw 1 with probability p, else 0; see `Source`."""
        return _empty(shape, like).bernoulli_(p, generator=self._generator)


class Counted(Source):
    """Numbers that are computed from the keys of members, so that those of a member do not depend on the others.

    Args:
        noise: the key of the parameter.
        keys: the keys of the members, int64 [n], on the device of the parameters.
    """

    def __init__(self, noise: Noise, keys: Tensor) -> None:
        self._noise = noise
        self._keys = keys
        self._draws = 0

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw from N(0, 1); see `Source`."""
        return self._next().rows("normal", self._keys, prod(shape[1:])).to(like.dtype).reshape(shape)

    def bernoulli(self, p: float, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw 1 with probability p, else 0; see `Source`."""
        below = self._next().rows("uniform", self._keys, prod(shape[1:])) < p
        return below.to(like.dtype).reshape(shape)

    def _next(self) -> Noise:
        self._draws += 1
        return self._noise.fold(self._draws)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
