"""How an entry stands."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bpfree.lab.ledger.entries import Entry
from bpfree.lab.ledger.results import Measured, is_of_today, read_results


class Verdict(Enum):
    """With a mark that plain text keeps, since viewers of Markdown strip colours."""

    REACHED = "🟢 reached"
    NOT_REACHED = "🔴 not reached"
    UNCOMPARED = "⚪ no published value"
    UNMEASURED = "⚪ not measured yet"


@dataclass(frozen=True)
class Status:
    """An entry and its runs.

    Attributes:
        entry: as in the ledger.
        runs: of its seeds, with its config as it is now.
        outdated: whether there are results of a config that has changed since.
    """

    entry: Entry
    runs: Sequence[Measured]
    outdated: bool = False

    @property
    def mean(self) -> float:
        """Of the scores."""
        return statistics.fmean(run.score for run in self.runs)

    @property
    def std(self) -> float | None:
        """Of the scores; None for one run."""
        return statistics.stdev(run.score for run in self.runs) if len(self.runs) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the published one, to the last place shown; None if either is missing."""
        if not self.runs or self.entry.published is None:
            return None
        return round(self.mean - self.entry.published, self.entry.places)

    @property
    def verdict(self) -> Verdict:
        """Whether the mean of ours is as good as the published figure, or within the tolerance."""
        if not self.runs:
            return Verdict.UNMEASURED
        if self.difference is None:
            return Verdict.UNCOMPARED
        gain = -self.difference if self.entry.metric == "loss" else self.difference
        return Verdict.REACHED if gain >= -self.entry.tolerance else Verdict.NOT_REACHED

    @property
    def missing(self) -> list[int]:
        """Seeds without a run."""
        return [seed for seed in self.entry.seeds if seed not in {run.seed for run in self.runs}]


def compare_with_published(entry: Entry, results: Path) -> Status:
    """How an entry stands by its results file.

    Raises:
        UserError: the file is damaged.
    """
    found = read_results(entry, results)
    if found is None:
        return Status(entry, [])
    if not is_of_today(entry, found):
        return Status(entry, [], outdated=True)
    return Status(entry, [run for run in found.runs if run.seed in entry.seeds])
