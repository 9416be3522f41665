"""The status of an entry: the comparison of its runs with the published value."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bpfree.lab.ledger.entries import Entry
from bpfree.lab.ledger.results import Measured, is_of_today, read_results


class Verdict(Enum):
    """The outcome of a comparison.

    The value is shown on the page. It begins with a coloured circle, because viewers of Markdown ignore text colours.
    """

    REACHED = "🟢 reached"
    NOT_REACHED = "🔴 not reached"
    UNCOMPARED = "⚪ no published value"
    UNMEASURED = "⚪ not measured yet"


@dataclass(frozen=True)
class Status:
    """An entry with the results of its runs.

    Attributes:
        entry: the entry.
        runs: the results of its seeds, measured with the config that the entry has now.
        outdated: True if the results file is of an older config; its results are then not in `runs`.
    """

    entry: Entry
    runs: Sequence[Measured]
    outdated: bool = False

    @property
    def mean(self) -> float:
        """The mean of the scores; there must be a run."""
        return statistics.fmean(run.score for run in self.runs)

    @property
    def std(self) -> float | None:
        """The standard deviation of the scores (n - 1 in the denominator); None for fewer than two runs."""
        return statistics.stdev(run.score for run in self.runs) if len(self.runs) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the published value, rounded as it is shown; None if one of them is missing."""
        if not self.runs or self.entry.published is None:
            return None
        return round(self.mean - self.entry.published, self.entry.places)

    @property
    def verdict(self) -> Verdict:
        """The verdict: reached if our mean is as good as the published value, or within the tolerance of it."""
        if not self.runs:
            return Verdict.UNMEASURED
        if self.difference is None:
            return Verdict.UNCOMPARED
        # The rounded difference decides: a reader must be able to check the verdict with the numbers on the page.
        gain = -self.difference if self.entry.metric == "loss" else self.difference
        return Verdict.REACHED if gain >= -self.entry.tolerance else Verdict.NOT_REACHED

    @property
    def missing(self) -> list[int]:
        """The seeds that have no result yet."""
        return [seed for seed in self.entry.seeds if seed not in {run.seed for run in self.runs}]


def compare_with_published(entry: Entry, results: Path) -> Status:
    """Return the status of an entry, from its results file.

    Args:
        entry: the entry.
        results: the folder of the results files.

    Raises:
        UserError: the results file is damaged.
    """
    measured = read_results(entry, results)
    if measured is None:
        return Status(entry, [])
    if not is_of_today(entry, measured):
        return Status(entry, [], outdated=True)
    return Status(entry, [run for run in measured.runs if run.seed in entry.seeds])
