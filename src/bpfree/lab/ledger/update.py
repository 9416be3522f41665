"""Train the runs of the ledger that have no result yet, and write docs/ledger.md again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfree.disk.atomic import write_text
from bpfree.errors import check_positive
from bpfree.lab.jobs.jobs import Job, OnProgress, run_jobs
from bpfree.lab.jobs.machine import jobs_at_once
from bpfree.lab.ledger.entries import LEDGER, Entry, choose, read_entries
from bpfree.lab.ledger.page import render
from bpfree.lab.ledger.results import RESULTS, measure, write_results
from bpfree.lab.ledger.status import Status, compare_with_published

PAGE = Path("docs") / "ledger.md"
RUNS = Path("runs") / "ledger"


@dataclass
class Update:
    """The outcome of an update.

    Attributes:
        page: the path of docs/ledger.md.
        statuses: the status of every entry.
        failed: the error of each run that failed, by the run's name.
    """

    page: Path
    statuses: list[Status]
    failed: dict[str, str]


def update(
    root: Path,
    names: Sequence[str] | None = (),
    *,
    data_dir: Path | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = lambda running, done, total: None,
) -> Update:
    """Train the runs of some entries that have no result yet, and write docs/ledger.md again.

    Args:
        root: the root folder of the repository.
        names: names of the entries to train; () to train none and write only the page; None for every entry.
        data_dir: the folder of the data sets; None for the default.
        jobs: the number of runs at the same time, each with one thread; default: one for each core, or one with a GPU.
        on_progress: called whenever a run begins or ends; see `bpfree.lab.jobs.jobs.OnProgress`.

    Raises:
        UserError: the ledger does not exist or is wrong, or an entry does not exist.
        KeyboardInterrupt: Ctrl-C was pressed. Finished runs are in the results, and the same call goes on.
    """
    if jobs is not None:
        check_positive("jobs", jobs)
    entries = read_entries(root / LEDGER)
    chosen = entries if names is None else choose(entries, names)
    failed = _run(root, chosen, data_dir, jobs or jobs_at_once(), on_progress) if chosen else {}
    statuses = write_page(root, entries)
    return Update(root / PAGE, statuses, failed)


def write_page(root: Path, entries: Sequence[Entry] | None = None) -> list[Status]:
    """Write docs/ledger.md from the ledger and the results files.

    Args:
        root: the root folder of the repository.
        entries: every entry, if they have been read.

    Returns:
        The status of every entry.

    Raises:
        UserError: the ledger or a results file is damaged.
    """
    statuses = [compare_with_published(entry, root / RESULTS) for entry in entries or read_entries(root / LEDGER)]
    (root / PAGE).parent.mkdir(parents=True, exist_ok=True)
    write_text(root / PAGE, render(statuses))
    return statuses


def _run(
    root: Path, entries: Sequence[Entry], data_dir: Path | None, at_once: int, on_progress: OnProgress
) -> dict[str, str]:
    """Train the missing runs of some entries, and return the errors of those that failed."""
    statuses = [compare_with_published(entry, root / RESULTS) for entry in entries]
    planned = [(status, _jobs(status, root, data_dir)) for status in statuses]
    try:
        return run_jobs([job for _, jobs in planned for job in jobs], at_once, on_progress)
    finally:  # also after Ctrl-C: a run of days that is finished must not depend on the runs after it
        for status, jobs in planned:
            _keep(status, jobs, root)


def _jobs(status: Status, root: Path, data_dir: Path | None) -> list[Job]:
    """Return a job for each seed that has no result."""
    entry = status.entry
    names = {seed: f"{entry.name}-{seed}" for seed in status.missing}
    return [Job(name, entry.training(seed, data_dir), root / RUNS / name) for seed, name in names.items()]


def _keep(status: Status, jobs: Sequence[Job], root: Path) -> None:
    """Add the results of finished runs to the results file of an entry."""
    entry = status.entry
    # Runs of an outdated results file are not in `status.runs`, so they are dropped here.
    done = [measure(entry, job.config.train.seed, job.folder) for job in jobs if job.is_over()]
    if done:
        write_results(entry, [*status.runs, *done], root / RESULTS)
