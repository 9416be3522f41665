"""The members of one step and their noise, which is drawn anew whenever it is asked for."""

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


class Chunk(NamedTuple):
    """Some members in a row.

    Attributes:
        samples: E of the K keys that they have, parameter by parameter.
        places: [n], the place in the samples of each member's key.
        signs: [n], 1 or -1.
    """

    samples: list[Sample]
    places: list[int]
    signs: list[int]


@dataclass(frozen=True)
class Generation:
    """The members of a step: theta + sign * scale * E_key.

    Attributes:
        parameters: theta.
        members: in the order of their scores, those of a key side by side.
        perturbation: the distribution of E.
        noise: the key of the step.
        scale: sigma; or, parameter by parameter, a sigma for each element.
    """

    parameters: Sequence[nn.Parameter]
    members: Sequence[Member]
    perturbation: Perturbation
    noise: Noise
    scale: float | Sequence[Tensor] = 1.0

    def scale_of(self, index: int) -> float | Tensor:
        """Sigma of the parameter at that place."""
        return self.scale if isinstance(self.scale, float) else self.scale[index]

    def draw(self, block: int) -> Iterator[Sample]:
        """E of the keys of a block, parameter by parameter, the same to the bit on every call; one is held at a time.

        Keys come in blocks of `perturbation.together`, so that what is drawn does not depend on how they are run.
        """
        generator = self.noise.fold("member", block).generator(self.parameters[0].device)
        return (self.perturbation.sample(p, self.perturbation.together, generator) for p in self.parameters)

    def blocks(self) -> Iterator[Chunk]:
        """The members in order, those of a block of keys at a time."""
        together = self.perturbation.together
        for block, found in groupby(self.members, lambda member: member.key // together):
            members = list(found)
            samples = list(self.draw(block))
            yield Chunk(samples, [m.key % together for m in members], [m.sign for m in members])
            del samples  # before the next are drawn

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The members in order, up to `size` at a time."""
        together = self.perturbation.together
        held: tuple[int, list[Sample]] = (-1, [])
        for start in range(0, len(self.members), size):
            members = self.members[start : start + size]
            parts: list[list[Sample]] = []
            places: list[int] = []
            known = 0
            for block, found in groupby(members, lambda member: member.key // together):
                own = [member.key % together for member in found]
                if held[0] != block:
                    held = (block, list(self.draw(block)))
                first, last = min(own), max(own)
                parts.append([sample.between(first, last + 1) for sample in held[1]])
                places += [known + place - first for place in own]
                known += last + 1 - first
            samples = (
                parts[0] if len(parts) == 1 else [one.followed_by(rest) for one, *rest in zip(*parts, strict=True)]
            )
            yield Chunk(samples, places, [member.sign for member in members])

    def combine(self, weights: Tensor, of: Callable[[Sample, Tensor], Tensor] | None = None) -> list[Tensor]:
        """sum_i w_i sign_i E_i by parameter, of weights [P], all noise drawn anew.

        Args:
            weights: one for each member.
            of: another sum over a sample's members, of their weights without signs, than that of E.
        """
        together = self.perturbation.together
        signs = weights.new_tensor([member.sign for member in self.members])
        keys = torch.tensor([member.key for member in self.members], device=weights.device)
        by_key = weights.new_zeros(together * (1 + self.members[-1].key // together))
        by_key.index_add_(0, keys, weights if of else weights * signs)
        totals = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self.parameters]
        for block in dict.fromkeys(member.key // together for member in self.members):
            own = by_key[block * together : (block + 1) * together]
            for total, sample in zip(totals, self.draw(block), strict=True):
                total += (of or _combine)(sample, own.to(total.dtype))
        return totals


def _combine(sample: Sample, weights: Tensor) -> Tensor:
    return sample.combine(weights)
