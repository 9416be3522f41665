"""The part of a batch that one of several processes works on."""

from typing import NamedTuple

from bpfree.errors import UserError


class Part(NamedTuple):
    """Neighbouring rows of a batch.

    Attributes:
        start: the first row, from 0.
        stop: the row after the last one.
        whole: the number of rows of the whole batch.

    Example:
        >>> [Part.of(10, (rank, 3)) for rank in range(3)]
        [Part(start=0, stop=3, whole=10), Part(start=3, stop=6, whole=10), Part(start=6, stop=10, whole=10)]
    """

    start: int
    stop: int
    whole: int

    @classmethod
    def of(cls, rows: int, share: tuple[int, int] | None) -> "Part":
        """Return the rows of one process. The parts of all processes together are the batch, in order.

        Args:
            rows: n, the number of rows of the whole batch.
            share: the number of the process, from 0, and the number of processes; None for the whole batch. Process r
                of s gets the rows from n*r//s to n*(r+1)//s - 1. These are none if there are more processes than rows.

        Raises:
            UserError: there is no such process.
        """
        if share is None:
            return cls(0, rows, rows)
        rank, size = share
        if not 0 <= rank < size:
            raise UserError(f"part: found process {rank} of {size}, allowed: 0 to the number of processes - 1")
        return cls(rows * rank // size, rows * (rank + 1) // size, rows)

    @property
    def rows(self) -> slice:
        """The rows as an index of the whole batch."""
        return slice(self.start, self.stop)
