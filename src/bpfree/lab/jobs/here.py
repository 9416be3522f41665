"""Trainings in this process, one after the other: for nets, rules and data that exist as Python objects alone."""

import traceback
from collections.abc import Sequence

from bpfree.disk.atomic import make_folder, write_text
from bpfree.errors import UserError
from bpfree.lab.jobs.jobs import Job, OnProgress
from bpfree.runs.folder import CONFIG
from bpfree.runs.train import train


def run_here(jobs: Sequence[Job], on_progress: OnProgress = lambda running, done, total: None) -> dict[str, str]:
    """Train every job that is not over in this process. A job that fails does not stop the others.

    Args:
        jobs: started in this order.
        on_progress: called whenever a job begins or ends.

    Returns:
        The error of each failed job, by the job's name. Its log file has the traceback, unless it is a UserError.

    Raises:
        UserError: a folder holds a run of another config.
        KeyboardInterrupt: Ctrl-C was pressed. By then the running job has kept a checkpoint.

    Example:
        >>> run_here([])
        {}
    """
    waiting = [job for job in jobs if not job.is_over()]
    failed: dict[str, str] = {}
    for number, job in enumerate(waiting):
        on_progress([job], len(jobs) - len(waiting) + number, len(jobs))
        if error := _train(job):
            failed[job.name] = error
    on_progress([], len(jobs), len(jobs))
    return failed


def _train(job: Job) -> str:
    """Train a job, or resume the run that was begun in its folder, and return its error; "" if there is none."""
    try:
        make_folder(job.folder.parent)
        job.log_file.unlink(missing_ok=True)
        begun = (job.folder / CONFIG).exists()
        made = job.objects.made()
        # Two bars at once would overwrite each other, and that of `on_progress` is enough.
        train(job.config, **made, dataset=job.objects.dataset, out=job.folder, resume=begun, verbose=False)
    except (UserError, OSError) as error:
        return " ".join(str(error).split())
    except Exception as error:
        write_text(job.log_file, traceback.format_exc())
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text} (see {job.log_file})"
    return ""
