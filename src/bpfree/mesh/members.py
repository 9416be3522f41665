"""Populations that are split over processes: each runs some members, and all get the scores of all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.mesh.group import Group


class Members:
    """The members of a population that this process runs.

    Args:
        group: the processes that share the population.

    Attributes:
        flag: something that this process tells the others with its scores; after `joined`, True if any of them told it.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.flag = False

    def bounds(self, members: int, together: int = 1) -> list[tuple[int, int]]:
        """Return the first member and the end for each process.

        Args:
            members: P, the number of members.
            together: the number of members that stay in one process if there are enough of them, such as 2 for the
                pairs +E, -E, whose noise is then drawn once.

        Raises:
            UserError: there are fewer members than processes.
        """
        size = self.group.size
        if members < size:
            raise UserError(
                f"mesh: found {members} members or directions for {size} processes, allowed: at least one for each. "
                "Use a larger rule.population, or fewer processes"
            )
        together = together if members // together >= size else 1
        units = members // together
        ends = [units * rank // size * together for rank in range(size)] + [members]
        return list(pairwise(ends))

    def joined(self, scores: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
        """Return the scores of all members, [P].

        Args:
            scores: those of the members that this process ran.
            bounds: from `bounds`.
        """
        # The flag is one more number of each process, since a message of its own would double their number.
        told = torch.cat([scores, scores.new_tensor([float(self.flag)])])
        sizes = [stop - start + 1 for start, stop in bounds]
        found = torch.split(self.group.joined(told, sizes), sizes)
        self.flag = any(bool(part[-1]) for part in found)
        return torch.cat([part[:-1] for part in found])


_members: ContextVar[Members | None] = ContextVar("members", default=None)


def own_members() -> Members | None:
    """Return the members of this process in the running step; None if it runs all of them."""
    return _members.get()


@contextmanager
def members_apart(members: Members | None) -> Iterator[None]:
    """Let `own_members` return members inside the block.

    Args:
        members: those of this process; None for all.
    """
    before = _members.set(members)
    try:
        yield
    finally:
        _members.reset(before)
