"""Many trainings, each a job of submitit. What a training comes to is read from its run folder."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpfree.errors import UserError
from bpfree.lab.jobs.child import train_job
from bpfree.lab.jobs.cluster import Cluster
from bpfree.lab.jobs.jobs import Job, OnProgress

if TYPE_CHECKING:
    import submitit


def run_on_cluster(
    jobs: Sequence[Job], cluster: Cluster, on_progress: OnProgress = lambda running, done, total: None
) -> dict[str, str]:
    """Train every job that is not over, each as a job of a cluster. A job that fails does not stop the others.

    Args:
        jobs: submitted in this order.
        cluster: from `bpfree.lab.jobs.cluster.cluster`, whose block cancels the jobs after Ctrl-C.
        on_progress: called whenever a job begins or ends.

    Returns:
        The error of each failed job, by the job's name.

    Raises:
        UserError: a folder holds a run of another config, or Slurm refuses the jobs.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    batch = _Batch(jobs, cluster, on_progress)
    while batch.waiting or batch.submitted:
        batch.submit()
        batch.look()
        if batch.submitted:
            time.sleep(cluster.look_every)
    return batch.failed


class _Batch:
    """The jobs that wait here, are submitted, run and failed.

    Args:
        jobs: all jobs; jobs that are over do not wait.
        cluster: runs them.
        on_progress: called whenever a job begins or ends.

    Attributes:
        waiting: jobs that are not submitted, the next one first.
        submitted: the job of submitit for each job that is not over; it may wait in the queue of Slurm.
        running: jobs that were seen running.
        failed: the error of each failed job, by its name.
    """

    def __init__(self, jobs: Sequence[Job], cluster: Cluster, on_progress: OnProgress) -> None:
        self.waiting = [job for job in jobs if not job.is_over()]
        self.submitted: dict[Job, submitit.Job[None]] = {}
        self.running: list[Job] = []
        self.failed: dict[str, str] = {}
        self._total = len(jobs)
        self._cluster = cluster
        self._on_progress = on_progress
        self._report()

    def submit(self) -> None:
        """Submit as many waiting jobs as the cluster takes."""
        taken = self.waiting[: self._cluster.room(len(self.submitted))]
        del self.waiting[: len(taken)]
        ready = [job for job in taken if self._prepare(job)]
        if ready:
            arguments = [(job.config_file.absolute(), job.folder.absolute()) for job in ready]
            self.submitted |= zip(ready, self._cluster.submit(train_job, arguments), strict=True)

    def look(self) -> None:
        """Note which jobs have begun and which are over."""
        for job, place in list(self.submitted.items()):
            is_over = self._cluster.is_over(place)
            if job not in self.running and (is_over or self._cluster.has_begun(place)):
                self.running.append(job)
                self._report()
            if is_over:
                self.running.remove(job)
                del self.submitted[job]
                self._judge(job, place)
                self._report()

    def _judge(self, job: Job, place: "submitit.Job[None]") -> None:
        """Note the error of a job that is over, unless its folder has the result."""
        try:
            if not _has_result(job):
                self.failed[job.name] = self._cluster.why(place)
        except (UserError, OSError) as error:  # the folder cannot be read
            self.failed[job.name] = str(error)

    def _prepare(self, job: Job) -> bool:
        """Write the files of a job; return False if that is not possible, which is an error of this job alone."""
        try:
            job.prepare()
        except (UserError, OSError) as error:
            self.failed[job.name] = str(error)
            self._report()
            return False
        return True

    def _report(self) -> None:
        done = self._total - len(self.waiting) - len(self.submitted)
        self._on_progress(self.running, done, self._total)


def _has_result(job: Job) -> bool:
    """Return True if a job has its result. A network disk shows new files of another machine in a listed folder."""
    for folder in (job.folder.parent, job.folder):
        if folder.is_dir():
            list(folder.iterdir())
    return job.is_over()
