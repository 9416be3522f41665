"""The members of one step and their noise, which is not stored but drawn again each time it is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfree.noise import Noise, counts
from bpfree.population.members import Layout, Member, Population
from bpfree.population.perturbation import Perturbation, Sample
from bpfree.population.source import Counted, Stream

_AT_ONCE = 2**27  # numbers of noise that are computed at once on a device for a sum; more would not make it faster
# The same where members run one by one, which shall take little memory, and the largest number of their keys.
_FEW, _BLOCK = 2**24, 64


class Chunk(NamedTuple):
    """Several consecutive members and their noise.

    Attributes:
        samples: the noise E of the K keys of these members, one sample for each parameter.
        layout: the place of each member's key in the samples, and its sign.
    """

    samples: list[Sample]
    layout: Layout

    @property
    def places(self) -> list[int]:
        """The place of each member's key in the samples, [n]."""
        return self.layout.places

    @property
    def signs(self) -> list[int]:
        """1 or -1 for each member, [n]."""
        return self.layout.signs


@dataclass(frozen=True)
class Generation:
    """The members of a step: theta + sign * scale * E_key.

    Attributes:
        parameters: theta.
        members: the members in the order of their scores. Members with the same key follow one another.
        perturbation: the distribution of E.
        noise: the key of the step.
        scale: sigma, a number or a tensor, 0-d; or for each parameter a tensor with a sigma for each element.
    """

    parameters: Sequence[nn.Parameter]
    members: Sequence[Member]
    perturbation: Perturbation
    noise: Noise
    scale: float | Tensor | Sequence[Tensor] = 1.0

    @property
    def sigma(self) -> float | Tensor:
        """The one sigma of all elements."""
        assert isinstance(self.scale, float | Tensor)
        return self.scale

    def scale_of(self, index: int) -> float | Tensor:
        """Return sigma of a parameter, by its place in `parameters`."""
        return self.scale if isinstance(self.scale, float | Tensor) else self.scale[index]

    def draw(self, block: int) -> Iterator[Sample]:
        """Draw the noise E of a block of keys, the same to the bit on every call.

        Keys come in blocks of `perturbation.together`, so that the noise does not depend on how the members are run.

        Args:
            block: the number of the block.

        Returns:
            An iterator over samples, one for each parameter, which are drawn one at a time to save memory.
        """
        together = self.perturbation.together
        if self._counts:
            return self._computed(torch.arange(block * together, (block + 1) * together, device=self._device))
        # One stream for all parameters of a block. So the samples must be drawn in the order of the parameters, even
        # if a caller needs only one of them.
        source = Stream(self.noise.fold("member", block).generator(self._device))
        return (self.perturbation.sample(p, together, source) for p in self.parameters)

    def draw_one(self, key: int) -> Iterator[tuple[Sample, int]]:
        """Draw the noise of one key.

        Args:
            key: the key.

        Returns:
            An iterator over pairs, one for each parameter: a sample, and the place of the key in it.
        """
        if self._counts:
            alone = torch.full((1,), key, dtype=torch.int64, device=self._device)
            return ((sample, 0) for sample in self._computed(alone))
        # The whole block is drawn, since the numbers of a key depend on its place in the block.
        block, place = divmod(key, self.perturbation.together)
        return ((sample, place) for sample in self.draw(block))

    def blocks(self) -> Iterator[Chunk]:
        """Yield the members in order, one block of keys at a time."""
        size = self.perturbation.together
        if self._counts:
            numbers = sum(self.perturbation.numbers(p) for p in self.parameters)
            size = max(1, min(_BLOCK, _FEW // numbers))
        return self._chunks(self._population.runs(size))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield the members in order, up to `size` at a time. A chunk may end inside a block or span several.

        Args:
            size: the largest number of members of a chunk.
        """
        return self._chunks((start, start + size) for start in range(0, len(self.members), size))

    def _chunks(self, bounds: Iterable[tuple[int, int]]) -> Iterator[Chunk]:
        drawn: dict[int, list[Sample]] = {}  # a block and its noise; kept, as the next chunk may begin in it
        for start, end in bounds:
            layout = self._population.layout(start, end, self.perturbation.together)
            yield Chunk(self._noise_of(layout, drawn), layout)

    def _noise_of(self, layout: Layout, drawn: dict[int, list[Sample]]) -> list[Sample]:
        if self._counts:
            return list(self._computed(layout.on(self.parameters[0]).keys))
        parts: list[list[Sample]] = []
        for block, first, end in layout.spans:
            if block not in drawn:
                drawn.clear()  # first, to free this noise before the next block is drawn
                drawn[block] = list(self.draw(block))
            parts.append([sample.between(first, end) for sample in drawn[block]])
        return parts[0] if len(parts) == 1 else [one.followed_by(rest) for one, *rest in zip(*parts, strict=True)]

    def combine(self, weights: Tensor, of: Callable[[Sample, Tensor], Tensor] | None = None) -> list[Tensor]:
        """Return sum_i w_i sign_i E_i for each parameter. All noise is drawn again.

        Args:
            weights: w [P], one for each member.
            of: another sum over the members of a sample, (sample, weights [K]) -> a tensor shaped like the parameter.
                It gets the weights without signs.
        """
        layout = self._population.layout(0, len(self.members), self.perturbation.together)
        # `of` sums an even function of E, such as E^2, for which both members of a pair are the same.
        signed = weights if of else weights * layout.on(weights).signs
        if self._counts:
            with torch.autocast(self._device.type, enabled=False):  # it would round the sums
                return self._combined_by_parameter(layout, signed, of or _combine)
        return self._combined_by_block(layout, signed, of or _combine)

    def _combined_by_block(
        self, layout: Layout, signed: Tensor, of: Callable[[Sample, Tensor], Tensor]
    ) -> list[Tensor]:
        together = self.perturbation.together
        keys, places, _ = layout.on(signed)
        # A mirrored pair has the same E, so its two weights are added before any noise is drawn.
        # The last member has the largest key. The length is rounded up to whole blocks; a key without members has
        # weight 0.
        by_key = signed.new_zeros(together * (1 + self.members[-1].key // together)).index_add_(0, keys[places], signed)
        totals = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self.parameters]
        # dict.fromkeys keeps the order. A set does not promise one, and a sum in another order rounds differently.
        for block in dict.fromkeys(block for block, _, _ in layout.spans):
            of_block = by_key[block * together : (block + 1) * together]
            for total, sample in zip(totals, self.draw(block), strict=True):
                total += of(sample, of_block.to(total.dtype))
        return totals

    def _combined_by_parameter(
        self, layout: Layout, signed: Tensor, of: Callable[[Sample, Tensor], Tensor]
    ) -> list[Tensor]:
        keys, places, _ = layout.on(signed)
        # `index_add_` adds in an order that a GPU leaves open, so it is only for members in no regular order.
        by_key = (
            signed.view(-1, layout.each).sum(1)
            if layout.each
            else torch.zeros_like(keys, dtype=signed.dtype).index_add_(0, places, signed)
        )
        totals = []
        for index, p in enumerate(self.parameters):
            size = max(1, _AT_ONCE // self.perturbation.numbers(p))
            parts = (
                of(self._sample(index, some), of_some.to(p.dtype))
                for some, of_some in zip(torch.split(keys, size), torch.split(by_key, size), strict=True)
            )
            total = next(parts)
            for part in parts:
                total += part
            totals.append(total)
        return totals

    def _computed(self, keys: Tensor) -> Iterator[Sample]:
        return (self._sample(index, keys) for index in range(len(self.parameters)))

    def _sample(self, index: int, keys: Tensor) -> Sample:
        """The noise of keys on one parameter, computed from them."""
        source = Counted(self.noise.fold("member", index), keys)
        return self.perturbation.sample(self.parameters[index], len(keys), source)

    @property
    def _device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def _counts(self) -> bool:
        """True if the noise is computed from keys; see `Counted`."""
        return counts(self._device)

    @property
    def _population(self) -> Population:
        return self.members if isinstance(self.members, Population) else Population(self.members)


def _combine(sample: Sample, weights: Tensor) -> Tensor:
    return sample.combine(weights)
