"""Levels of noise sigma that blocks share among them, and the scalings of a denoiser by its level.

    log sigma ~ N(mean, std^2) between sigma_min and sigma_max;  each of T blocks owns the same share of this mass
    D(z, sigma, x) = c_skip z + c_out F(c_in z; x, c_noise)

The scalings and the distribution are those of Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models" (EDM), https://arxiv.org/abs/2206.00364, Table 1.
"""

from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError, check_positive
from bpfree.spec import OptionGroup


class Scalings(NamedTuple):
    """The coefficients of a denoiser at levels sigma, each in the shape of sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


@dataclass(frozen=True)
class NoiseLevels(OptionGroup):
    """The distribution of the noise level sigma, and the part of it that each block owns.

    Attributes:
        sigma_min: the smallest level, above 0.
        sigma_max: the largest level, where inference starts.
        mean: the mean of log sigma.
        std: the standard deviation of log sigma.
        data: sigma_data, the standard deviation that the scalings suppose the embeddings to have.
        overlap: by which part of its length in log sigma a block's range is wider on either side while it learns.

    Raises:
        UserError: levels that are not above 0 and in this order, or a negative overlap.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    mean: float = -1.2
    std: float = 1.2
    data: float = 0.5
    overlap: float = 0.05

    def __post_init__(self) -> None:
        """Raise UserError if the levels do not fit."""
        for name in ("sigma_min", "std", "data"):
            check_positive(f"noise.{name}", getattr(self, name))
        if self.sigma_max <= self.sigma_min:
            raise UserError(
                f"noise.sigma_max: found {self.sigma_max}, allowed: above noise.sigma_min, which is {self.sigma_min}"
            )
        if self.overlap < 0:
            raise UserError(f"noise.overlap: found {self.overlap}, allowed: 0 or more")

    def spaced(self, number: int) -> list[float]:
        """Return so many levels from sigma_max down to sigma_min, with the same mass between neighbours.

        Args:
            number: how many, at least 1; a single one is sigma_max.
        """
        high, low = self._mass(self.sigma_max), self._mass(self.sigma_min)
        inner = (high + (low - high) * k / (number - 1) for k in range(1, number - 1))
        # The ends are given as they are and not rounded by two functions.
        ends = [self.sigma_max, *(exp(self._normal.inv_cdf(mass)) for mass in inner), self.sigma_min]
        return ends[:number]

    def owner(self, sigma: float, blocks: int) -> int:
        """Return the block from 1 to T that owns a level. Block 1 owns the highest ones; an edge is the upper block's.

        Args:
            sigma: the level; beyond both ends the first or the last block owns it.
            blocks: T.
        """
        return 1 + sum(sigma < edge for edge in self.spaced(blocks + 1)[1:-1])

    def range_of(self, block: int, blocks: int) -> tuple[float, float]:
        """Return the lowest and the highest level that a block learns, with the overlap.

        Args:
            block: from 1 to T.
            blocks: T.
        """
        high, low = self.spaced(blocks + 1)[block - 1 : block + 1]
        more = exp(self.overlap * log(high / low))
        return max(low / more, self.sigma_min), min(high * more, self.sigma_max)

    def draw(self, block: int, blocks: int, uniform: Tensor) -> Tensor:
        """Return levels of a block's range, with the overlap, that follow the distribution.

        Args:
            block: from 1 to T.
            blocks: T.
            uniform: numbers in [0, 1), of any shape.
        """
        low, high = self.range_of(block, blocks)
        masses = self._mass(low), self._mass(high)
        # In double: the mass of the highest levels differs from 1 by less than float32 can show.
        mass = masses[0] + (masses[1] - masses[0]) * uniform.double()
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(mass)).clamp(low, high)
        return sigma.to(uniform.dtype)

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return c_skip, c_out, c_in and c_noise at levels sigma, each in their shape.

        Args:
            sigma: levels of any shape.
        """
        total = sigma.square() + self.data**2
        return Scalings(self.data**2 / total, sigma * self.data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4)

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of the loss at levels sigma, 1 / c_out^2, in their shape.

        Args:
            sigma: levels of any shape.
        """
        return (sigma.square() + self.data**2) / (sigma * self.data).square()

    @property
    def _normal(self) -> NormalDist:
        return NormalDist(self.mean, self.std)

    def _mass(self, sigma: float) -> float:
        """The part of the distribution below a level."""
        return self._normal.cdf(log(sigma))
