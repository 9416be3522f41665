"""The answers that all processes of a training need at the same time; one process answers by itself."""

from collections.abc import Callable
from typing import TypeVar

import torch

from bpfree.mesh import Group, join, launched

T = TypeVar("T")


def world_of(mesh: str) -> Group | None:
    """Connect the processes that torchrun started, and return their group; None if each process trains by itself.

    Args:
        mesh: the name of a mode, or "auto" or "none"; see `bpfree.training.mesh.MeshSpec`.
    """
    if launched() == 1 or mesh == "none":
        return None
    join()
    return Group()


def agreed(world: Group | None, choose: Callable[[], T]) -> T:
    """Return on all processes what a function returns in the first one; see `bpfree.mesh.Group.agreed`.

    Args:
        world: the processes; None for one, which calls the function.
        choose: returns a plain value.

    Raises:
        UserError: the function raised it.
    """
    return choose() if world is None else world.agreed(choose)


class Together:
    """The processes of a training.

    Args:
        world: all of them; None for one.
    """

    def __init__(self, world: Group | None) -> None:
        self.world = world

    def same(self, value: T) -> T:
        """Return the plain value of the first process on all of them.

        Args:
            value: of this process.
        """
        return value if self.world is None else self.world.same(value)

    def total(self, number: float) -> float:
        """Return the sum of a number over the processes.

        Args:
            number: of this process.
        """
        return number if self.world is None else float(self.world.sum_(torch.tensor([number], dtype=torch.float64)))

    def first_of(self, text: str) -> str:
        """Return the first text of the processes that is not empty.

        Args:
            text: of this process; may be empty.
        """
        return text if self.world is None else next(filter(None, self.world.all_of(text)), "")

    def meet(self) -> None:
        """Wait until all processes are here, such as after the first one has written a file."""
        if self.world is not None:
            self.world.barrier()
