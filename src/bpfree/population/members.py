"""The members of a population, and the places of their noise among the noise of some keys."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.errors import UserError


class Member(NamedTuple):
    """A member of a population: theta + sign * sigma * E_key.

    Attributes:
        key: the number of its noise E. Two mirrored members share a key.
        sign: 1 or -1.
    """

    key: int
    sign: int

    @staticmethod
    def all(population: int, mirrored: bool) -> "Population":
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
            return Population(Member(i // 2, 1 - 2 * (i % 2)) for i in range(population))
        return Population(Member(i, 1) for i in range(population))


class Population(tuple[Member, ...]):
    """The members of a population in the order of their scores. Members with the same key follow one another.

    What is computed from them is kept, so that a step on a device copies nothing to it.
    """

    @property
    def per_key(self) -> int:
        """The number of members that share a key: 2 if they are mirrored, else 1."""
        return self.layout(0, len(self), 1).each or 1

    def part(self, start: int, end: int) -> "Population":
        """Return the members start, ..., end - 1 as a population."""
        return self._kept(("part", start, end), lambda: Population(self[start:end]))  # type: ignore[no-any-return]

    def layout(self, start: int, end: int, together: int) -> "Layout":
        """Return the layout of the members start, ..., end - 1.

        Args:
            start: the first member.
            end: the end, which may lie beyond the last member.
            together: the number of keys in a block.
        """
        return self._kept((start, end, together), lambda: Layout(self[start:end], together))  # type: ignore[no-any-return]

    def runs(self, together: int) -> list[tuple[int, int]]:
        """Return start and end of each run of members whose keys are in the same block.

        Args:
            together: the number of keys in a block.
        """
        return self._kept(together, lambda: self._found_runs(together))  # type: ignore[no-any-return]

    def _found_runs(self, together: int) -> list[tuple[int, int]]:
        runs, start = [], 0
        for _, run in groupby(self, lambda member: member.key // together):
            end = start + sum(1 for _ in run)
            runs.append((start, end))
            start = end
        return runs

    def _kept(self, name: object, make: Callable[[], Any]) -> Any:
        if name not in self.__dict__:
            self.__dict__[name] = make()  # type: ignore[index]
        return self.__dict__[name]  # type: ignore[index]

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes a copy, without what is kept."""
        return Population, (tuple(self),)


class OnDevice(NamedTuple):
    """A layout as tensors: the keys, int64 [K], the places, int64 [n], and the signs, floats [n]."""

    keys: Tensor
    places: Tensor
    signs: Tensor


class Layout:
    """The places of the noise of n consecutive members among the noise of K keys.

    Args:
        members: the members.
        together: the number of keys in a block.

    Attributes:
        spans: the keys by block: the block, and the first key and the end within it.
        keys: the same K keys, counted from the first block.
        places: the place of each member's key among the keys, [n].
        signs: 1 or -1 for each member, [n].
        each: m if the members 0, ..., m - 1 have the first key, the next m the second one, and so on; else None.
    """

    def __init__(self, members: tuple[Member, ...], together: int) -> None:
        self.spans: list[tuple[int, int, int]] = []
        self.keys: list[int] = []
        self.places: list[int] = []
        self.signs = [member.sign for member in members]
        for block, of_block in groupby(members, lambda member: member.key // together):
            in_block = [member.key % together for member in of_block]
            first, end = min(in_block), 1 + max(in_block)
            self.places += [len(self.keys) + place - first for place in in_block]
            self.keys += range(block * together + first, block * together + end)
            self.spans.append((block, first, end))
        each = len(members) // len(self.keys)
        regular = self.places == [place for place in range(len(self.keys)) for _ in range(each)]
        self.each = each if regular else None
        self._tensors: dict[tuple[torch.device, torch.dtype], OnDevice] = {}

    def on(self, like: Tensor) -> OnDevice:
        """Return the layout as tensors, which are made once.

        Args:
            like: a tensor with the device, and with the type of the signs.
        """
        kind = like.device, like.dtype
        if kind not in self._tensors:
            keys, places = (torch.tensor(numbers, device=like.device) for numbers in (self.keys, self.places))
            self._tensors[kind] = OnDevice(keys, places, torch.tensor(self.signs, dtype=like.dtype, device=like.device))
        return self._tensors[kind]
