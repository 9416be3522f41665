"""The members of one step and their noise, which is not stored but drawn again each time it is needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.population.perturbation import Perturbation, Sample


class Member(NamedTuple):
    """A member of a population: theta + sign * sigma * E_key.

    Attributes:
        key: the number of its noise E. Two mirrored members share a key.
        sign: 1 or -1.
    """

    key: int
    sign: int

    @staticmethod
    def all(population: int, mirrored: bool) -> list["Member"]:
        """Return the members of a population.

        Args:
            population: P, the number of members.
            mirrored: True for pairs that share a key and have opposite signs.

        Raises:
            UserError: fewer than two members, or an odd number of mirrored members.
        """
        if population < 2 or (mirrored and population % 2):
            allowed = "an even number of at least 2, since members are mirrored" if mirrored else "at least 2"
            raise UserError(f"population: found {population}, allowed: {allowed}")
        if mirrored:
            # Keys 0, 0, 1, 1, ... with the signs 1, -1, 1, -1, ...: the members of a pair follow one another, as
            # `Generation` needs it.
            return [Member(i // 2, 1 - 2 * (i % 2)) for i in range(population)]
        return [Member(i, 1) for i in range(population)]


class Chunk(NamedTuple):
    """Several consecutive members and their noise.

    Attributes:
        samples: the noise E of the K keys of these members, one sample for each parameter.
        places: the place of each member's key in the samples, [n].
        signs: 1 or -1 for each member, [n].
    """

    samples: list[Sample]
    places: list[int]
    signs: list[int]


@dataclass(frozen=True)
class Generation:
    """The members of a step: theta + sign * scale * E_key.

    Attributes:
        parameters: theta.
        members: the members in the order of their scores. Members with the same key follow one another.
        perturbation: the distribution of E.
        noise: the key of the step.
        scale: sigma, or for each parameter a tensor with a sigma for each element.
    """

    parameters: Sequence[nn.Parameter]
    members: Sequence[Member]
    perturbation: Perturbation
    noise: Noise
    scale: float | Sequence[Tensor] = 1.0

    def scale_of(self, index: int) -> float | Tensor:
        """Return sigma of a parameter, by its place in `parameters`."""
        return self.scale if isinstance(self.scale, float) else self.scale[index]

    def draw(self, block: int) -> Iterator[Sample]:
        """Draw the noise E of a block of keys, the same to the bit on every call.

        Keys come in blocks of `perturbation.together`, so that the noise does not depend on how the members are run.

        Args:
            block: the number of the block.

        Returns:
            An iterator over samples, one for each parameter, which are drawn one at a time to save memory.
        """
        # One generator for all parameters of a block. So the samples must be drawn in the order of the parameters, even
        # if a caller needs only one of them.
        generator = self.noise.fold("member", block).generator(self.parameters[0].device)
        return (self.perturbation.sample(p, self.perturbation.together, generator) for p in self.parameters)

    def blocks(self) -> Iterator[Chunk]:
        """Yield the members in order, one block of keys at a time."""
        together = self.perturbation.together
        for block, of_block in groupby(self.members, lambda member: member.key // together):
            members = list(of_block)
            samples = list(self.draw(block))
            yield Chunk(samples, [m.key % together for m in members], [m.sign for m in members])
            del samples  # free this noise before the next block is drawn

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield the members in order, up to `size` at a time. A chunk may end inside a block or span several.

        Args:
            size: the largest number of members of a chunk.
        """
        together = self.perturbation.together
        drawn: tuple[int, list[Sample]] = (-1, [])  # a block and its noise; kept, as the next chunk may begin in it
        for start in range(0, len(self.members), size):
            members = self.members[start : start + size]
            parts: list[list[Sample]] = []
            places: list[int] = []
            keys = 0  # the number of keys in `parts` so far
            for block, of_block in groupby(members, lambda member: member.key // together):
                in_block = [member.key % together for member in of_block]
                if drawn[0] != block:
                    drawn = (block, list(self.draw(block)))
                first, last = min(in_block), max(in_block)
                parts.append([sample.between(first, last + 1) for sample in drawn[1]])
                places += [keys + place - first for place in in_block]
                keys += last + 1 - first
            samples = (
                parts[0] if len(parts) == 1 else [one.followed_by(rest) for one, *rest in zip(*parts, strict=True)]
            )
            yield Chunk(samples, places, [member.sign for member in members])

    def combine(self, weights: Tensor, of: Callable[[Sample, Tensor], Tensor] | None = None) -> list[Tensor]:
        """Return sum_i w_i sign_i E_i for each parameter. All noise is drawn again.

        Args:
            weights: w [P], one for each member.
            of: another sum over the members of a sample, (sample, weights [K]) -> a tensor shaped like the parameter.
                It gets the weights without signs.
        """
        together = self.perturbation.together
        signs = weights.new_tensor([member.sign for member in self.members])
        keys = torch.tensor([member.key for member in self.members], device=weights.device)
        # A mirrored pair has the same E, so its two weights are added before any noise is drawn.
        # The last member has the largest key. The length is rounded up to whole blocks; a key without members has
        # weight 0.
        by_key = weights.new_zeros(together * (1 + self.members[-1].key // together))
        # `of` sums an even function of E, such as E^2, for which both members of a pair are the same.
        by_key.index_add_(0, keys, weights if of else weights * signs)
        totals = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self.parameters]
        # dict.fromkeys keeps the order. A set does not promise one, and a sum in another order rounds differently.
        for block in dict.fromkeys(member.key // together for member in self.members):
            of_block = by_key[block * together : (block + 1) * together]
            for total, sample in zip(totals, self.draw(block), strict=True):
                total += (of or _combine)(sample, of_block.to(total.dtype))
        return totals


def _combine(sample: Sample, weights: Tensor) -> Tensor:
    return sample.combine(weights)
