"""How members of a population differ from the parameters they surround."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError, check_positive
from bpfree.noise import Noise


class Member(NamedTuple):
    """A member of a population: whose noise it has, and with which sign."""

    key: int
    sign: int

    @staticmethod
    def all(population: int, mirrored: bool) -> list["Member"]:
        """P members; mirrored ones in pairs that share a key.

        Raises:
            UserError: fewer than two members, or an odd number of mirrored ones.
        """
        if population < 2 or (mirrored and population % 2):
            allowed = "an even number of at least 2, since members are mirrored" if mirrored else "at least 2"
            raise UserError(f"population: found {population}, allowed: {allowed}")
        if mirrored:
            return [Member(i // 2, 1 - 2 * (i % 2)) for i in range(population)]
        return [Member(i, 1) for i in range(population)]


@dataclass(frozen=True)
class Keyed:
    """A perturbation at one step: noise by member key, regenerated bit for bit on every call."""

    perturbation: "Perturbation"
    noise: Noise

    def __call__(self, key: int, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
        """E of one member, tensor by tensor, each shaped like its parameter; only one is held at a time."""
        generator = self.noise.fold("member", key).generator(parameters[0].device)
        return (self.perturbation.sample(p, generator) for p in parameters)


class Perturbation(ABC):
    """A distribution of noise on the parameters."""

    @abstractmethod
    def sample(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the shape, type and device of a parameter."""

    def keyed(self, noise: Noise) -> Keyed:
        """This distribution at the key of a step."""
        return Keyed(self, noise)


class MaskedGaussian(Perturbation):
    """Each element moves with probability p, by N(0, sigma^2); its variance is p sigma^2.

    Args:
        sigma: standard deviation of what moves, in units of the parameters.
        p: probability that an element moves, in (0, 1].
    """

    def __init__(self, sigma: float, p: float) -> None:
        check_positive("sigma", sigma)
        if not 0 < p <= 1:
            raise UserError(f"p: found {p}, allowed: a probability above 0 and at most 1")
        self.sigma = sigma
        self.p = p

    def sample(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Sigma * mask * N(0, 1)."""
        noise = torch.empty_like(like).normal_(std=self.sigma, generator=generator)
        if self.p < 1:
            noise *= torch.empty_like(like).bernoulli_(self.p, generator=generator)
        return noise
