"""Run what has no result yet, and write the page anew."""

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
    """What came of an update.

    Attributes:
        page: the file.
        statuses: of every entry.
        failed: what went wrong, by the run's name.
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
    """Train the seeds of some entries that have no result yet, and write docs/ledger.md anew.

    Args:
        root: of the repository.
        names: of the entries to run; None for all.
        data_dir: where data sets are.
        jobs: processes at a time, of one thread each; default: as many as there are cores, or one with a GPU.
        on_progress: called whenever a run begins or ends; see `bpfree.lab.jobs.jobs.OnProgress`.

    Raises:
        UserError: there is no ledger, it does not hold, or there is no such entry.
        KeyboardInterrupt: Ctrl-C; what was finished is in the results, and the same call goes on.
    """
    if jobs is not None:
        check_positive("jobs", jobs)
    entries = read_entries(root / LEDGER)
    chosen = entries if names is None else choose(entries, names)
    failed = _run(root, chosen, data_dir, jobs or jobs_at_once(), on_progress) if chosen else {}
    statuses = write_page(root, entries)
    return Update(root / PAGE, statuses, failed)


def write_page(root: Path, entries: Sequence[Entry] | None = None) -> list[Status]:
    """Write docs/ledger.md, and say how entries stand."""
    statuses = [compare_with_published(entry, root / RESULTS) for entry in entries or read_entries(root / LEDGER)]
    (root / PAGE).parent.mkdir(parents=True, exist_ok=True)
    write_text(root / PAGE, render(statuses))
    return statuses


def _run(
    root: Path, entries: Sequence[Entry], data_dir: Path | None, at_once: int, on_progress: OnProgress
) -> dict[str, str]:
    """Also when interrupted, what is finished by then is written."""
    statuses = [compare_with_published(entry, root / RESULTS) for entry in entries]
    planned = [(status, _jobs(status, root, data_dir)) for status in statuses]
    try:
        return run_jobs([job for _, jobs in planned for job in jobs], at_once, on_progress)
    finally:
        for status, jobs in planned:
            _keep(status, jobs, root)


def _jobs(status: Status, root: Path, data_dir: Path | None) -> list[Job]:
    entry = status.entry
    names = {seed: f"{entry.name}-{seed}" for seed in status.missing}
    return [Job(name, entry.training(seed, data_dir), root / RUNS / name) for seed, name in names.items()]


def _keep(status: Status, jobs: Sequence[Job], root: Path) -> None:
    """Put finished runs into the results file, beside those that are there."""
    entry = status.entry
    done = [measure(entry, job.config.train.seed, job.folder) for job in jobs if job.is_over()]
    if done:
        write_results(entry, [*status.runs, *done], root / RESULTS)
