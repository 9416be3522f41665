"""The workers of a search as jobs of submitit. They share the study's database, as workers on one machine do."""

import tempfile
import time
import warnings
from pathlib import Path

import optuna

from bpfree.errors import UserError
from bpfree.lab.jobs.cluster import Cluster, cluster
from bpfree.lab.jobs.launcher import Launcher
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.worker import OnProgress, report, run_worker

_ENDING = 20  # seconds in which a worker that finds nothing more to do should end by itself


def supervise_on_cluster(
    study: optuna.Study, plan: Plan, workers: int, launcher: Launcher, on_progress: OnProgress
) -> None:
    """Submit workers as jobs, and wait until enough trials are finished or no worker is left.

    Args:
        study: the study, from `open_study`.
        plan: the plan of the search.
        workers: the number of jobs.
        launcher: "slurm" or "submitit".
        on_progress: called after each look at the study.

    Raises:
        UserError: Slurm refuses the jobs, or every worker failed.
        KeyboardInterrupt: Ctrl-C was pressed; running trials are put back first.
    """
    if launcher.name == "slurm" and plan.storage.startswith("sqlite"):
        warnings.warn(
            "storage: a file of SQLite on a network disk may be damaged by workers on several machines. Use a database "
            "such as PostgreSQL: --storage URL, see docs/tune.md",
            stacklevel=2,
        )
    # Only its owner can read a file of `tempfile`: the URL of the database may have a password. The arguments of a
    # process, which everybody can see, have the path alone.
    with tempfile.NamedTemporaryFile("w", dir=plan.out, prefix=".plan-", suffix=".json", encoding="utf-8") as file:
        file.write(plan.model_dump_json())
        file.flush()
        with cluster(launcher, plan.out) as jobs:
            _watch(study, plan, jobs, [Path(file.name).absolute()] * workers, on_progress)


def work_on(plan_file: Path) -> int:
    """Run a worker in a job.

    Args:
        plan_file: the plan as JSON.

    Returns:
        The exit status; see `run_worker`.
    """
    return run_worker(Plan.model_validate_json(plan_file.read_text(encoding="utf-8")))


def _watch(study: optuna.Study, plan: Plan, jobs: Cluster, plan_files: list[Path], on_progress: OnProgress) -> None:
    """Submit a worker for each file, wait for them, and warn of those that fail."""

    def is_left() -> bool:
        return report(study.get_trials(deepcopy=False), plan, on_progress) < plan.trials

    time_is_up = time.monotonic() + (plan.settings.timeout or float("inf"))
    alive = jobs.submit(work_on, [[file] for file in plan_files])
    failed: list[str] = []
    while alive and is_left():
        time.sleep(jobs.look_every)
        ended = [job for job in alive if jobs.is_over(job)]
        alive = [job for job in alive if job not in ended]
        # The study is read after the jobs: a worker that ended because nothing is left to do has not failed.
        if ended and time.monotonic() < time_is_up and is_left():
            failed += [jobs.why(job) for job in ended]
            for why in failed[-len(ended) :]:
                warnings.warn(f"a worker failed, and the others take its trial: {why}", stacklevel=2)
    if len(failed) == len(plan_files) and is_left():
        raise UserError(f"every worker ended early; {failed[0]}")
    end = time.monotonic() + _ENDING
    while time.monotonic() < end and any(jobs.has_begun(job) and not jobs.is_over(job) for job in alive):
        time.sleep(jobs.look_every)
