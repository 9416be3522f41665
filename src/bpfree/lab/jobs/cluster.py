"""Functions as jobs of submitit: on a cluster with Slurm, or as processes on this machine."""

import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpfree.disk.atomic import make_folder, write_error
from bpfree.errors import UserError
from bpfree.lab.jobs.launcher import Launcher
from bpfree.lab.jobs.submitted import Submitted
from bpfree.training.allocator import without_caches
from bpfree.training.interrupt import interrupt_at_the_end

if TYPE_CHECKING:
    import submitit

_YEAR = 365 * 24 * 60  # minutes
_PREEMPTED = 300  # seconds after which a preempted job does not come back: the cluster cancels such jobs
_CANCELLING = 90  # seconds; Slurm kills a cancelled job after 30 by default
_ASK_EVERY = 30.0  # seconds between two questions to Slurm; submitit would ask rarely after a while
_AGAIN = 5.0  # seconds until a job that goes on is cancelled again: it may have had no handler for the signal yet
_NOT_YET = ("", "PENDING", "RUNNING", "COMPLETING", "COMPLETED")  # states that say nothing about a job that failed


class Cluster:
    """Submits functions as jobs, watches the jobs, and cancels them.

    Args:
        launcher: "slurm" or "submitit".
        folder: gets what submitit writes: a pickle and a log for each job. Nobody else may write there, since a job
            executes its pickle.
        at_once: number of jobs that run at the same time. None: as many as Slurm allows.

    Attributes:
        jobs: all jobs that were submitted.
        look_every: seconds between two looks at the jobs.
        has_failed: True after `why`, so that the logs are needed.
    """

    def __init__(self, launcher: Launcher, folder: Path, at_once: int | None) -> None:
        self.folder = folder
        self.jobs: list[submitit.Job[None]] = []
        self.has_failed = False
        self.is_slurm = launcher.name == "slurm"
        self.look_every = 2.0 if self.is_slurm else 0.2
        self._at_once = at_once
        self._preempted: dict[str, float] = {}  # by the id of the job: since when
        self._asked = float("-inf")
        self._executor = self._slurm(launcher) if self.is_slurm else self._processes()

    def room(self, running: int) -> int | None:
        """Return how many more jobs may be submitted; None for any number: Slurm lets them wait.

        Args:
            running: the number of jobs that are submitted and not over.
        """
        return None if self.is_slurm or self._at_once is None else self._at_once - running

    def submit(self, function: Callable[..., int], arguments: Sequence[Sequence[Any]]) -> "list[submitit.Job[None]]":
        """Submit one job for each list of arguments. Several jobs of Slurm are one array.

        Args:
            function: a function of a module; see `Submitted`.
            arguments: the arguments of each job.

        Raises:
            UserError: Slurm refuses the jobs.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env

        # Within a job of Slurm, the variables of that job would become options of the new ones.
        outside = clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()
        # No Ctrl-C between `sbatch` and the note of the job's id: nobody would cancel the job. The processes of
        # submitit inherit the blocked signal, so Ctrl-C at the terminal reaches this process alone.
        with interrupt_at_the_end(), _blocked(signal.SIGINT), redirect_stderr(io.StringIO()), outside:
            try:
                jobs = self._executor.map_array(Submitted(function), *zip(*arguments, strict=True))
            except (FailedJobError, FailedSubmissionError) as error:
                raise UserError(f"launcher: Slurm refuses the jobs ({' '.join(str(error).split())})") from error
            self.jobs += jobs
        return jobs

    def has_begun(self, job: "submitit.Job[None]") -> bool:
        """Return True if a job has begun; before that it waits in the queue.

        Args:
            job: a job of this cluster.
        """
        return job.paths.stdout.exists()

    def is_over(self, job: "submitit.Job[None]") -> bool:
        """Return True if a job is over, by itself or because somebody ended it. No pickle of the job is read.

        Args:
            job: a job of this cluster.
        """
        if self.is_slurm and time.monotonic() - self._asked > _ASK_EVERY:
            job.get_info(mode="force")  # about all jobs
            self._asked = time.monotonic()
        if job.done():
            return True
        # submitit waits for a preempted job, which most clusters put back into the queue.
        if self.is_slurm and job.state == "PREEMPTED":
            return time.monotonic() - self._preempted.setdefault(job.job_id, time.monotonic()) > _PREEMPTED
        self._preempted.pop(job.job_id, None)
        return False

    def why(self, job: "submitit.Job[None]") -> str:
        """Return why a job failed: the last words of its log. An error of the user stands alone.

        Args:
            job: a job that is over.
        """
        self.has_failed = True
        log = job.paths.stderr if job.paths.stderr.exists() else job.paths.stdout
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        state = job.get_info().get("State", "") if self.is_slurm else ""
        ended = "" if state in _NOT_YET else f" with {state}"
        words = f": {lines[-1]}" if lines else "" if ended else ", it was killed"
        return f"its job {job.job_id} ended{ended}{words} (see {log})"

    def cancel(self) -> bool:
        """Cancel the jobs that are not over, and wait until they have kept their checkpoints.

        Returns:
            True if all jobs are over.
        """
        alive = [job for job in self.jobs if not self.is_over(job)]
        begun, told = time.monotonic(), float("-inf")
        while alive and (not self.is_slurm or time.monotonic() - begun < _CANCELLING):
            if time.monotonic() - told > _AGAIN:
                self._tell(alive)
                told = time.monotonic()
            time.sleep(self.look_every)
            self._asked = float("-inf")
            alive = [job for job in alive if not self.is_over(job)]
        return not alive

    def _tell(self, jobs: "Sequence[submitit.Job[None]]") -> None:
        """Send SIGTERM to jobs that run, and take jobs that wait out of the queue."""
        # Not job.cancel(): it would be a call for each job of Slurm, and kill a process of this machine after a second,
        # before it could keep a checkpoint.
        if self.is_slurm:
            command = ["scancel", *(job.job_id for job in jobs)]
            subprocess.run(command, check=False, capture_output=True, start_new_session=True)
            return
        for job in jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)

    def _slurm(self, launcher: Launcher) -> "submitit.SlurmExecutor":
        from submitit import SlurmExecutor

        options: dict[str, Any] = {"job_name": "bpfree", "wckey": None}  # submitit's own key may not be allowed
        threads = launcher.slurm.get("cpus_per_task", 1)
        if threads > 1:  # since Slurm 22.05 `srun` does not take this from the job
            options["srun_args"] = [f"--cpus-per-task={threads}"]
        if self._at_once is not None:
            options["array_parallelism"] = self._at_once
        executor = SlurmExecutor(self.folder, python=_python(threads))
        executor.update_parameters(**options | dict(launcher.slurm))
        return executor

    def _processes(self) -> "submitit.LocalExecutor":
        from submitit import LocalExecutor

        # submitit would let a process see no GPU, and end it after two minutes.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
        executor = LocalExecutor(self.folder, python=_python(1, *gpus))
        executor.update_parameters(timeout_min=_YEAR)
        return executor


@contextmanager
def cluster(launcher: Launcher, root: Path, at_once: int | None = None) -> Iterator[Cluster]:
    """Yield a cluster for new jobs. At the end of the block no job of it is left.

    Its folder is new and belongs to this user alone, so it can hold no pickle of somebody else. It is deleted at the
    end unless a job failed.

    Args:
        launcher: "slurm" or "submitit".
        root: the folder that gets the folder of submitit; on a cluster, all machines must see it.
        at_once: number of jobs that run at the same time. None: as many as Slurm allows.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="submitit-", dir=make_folder(root).absolute()))
    except OSError as error:
        raise write_error(root, error) from error
    jobs = Cluster(launcher, folder, at_once)
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it would write into the progress bar
    with _as_ctrl_c():
        try:
            yield jobs
        finally:
            is_over = jobs.cancel()
            if is_over and not jobs.has_failed:
                shutil.rmtree(folder, ignore_errors=True)


def _python(threads: int, *before: str) -> str:
    """Return the shell command of a Python interpreter for submitit, with words for `env` before the variables."""
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | without_caches()
    # -P: a file torch.py in the current folder must not replace the library.
    return shlex.join(["env", *before, *(f"{key}={value}" for key, value in variables.items()), sys.executable, "-P"])


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """A context in which this thread, and processes that it starts, do not get a signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _as_ctrl_c() -> Iterator[None]:
    """A context in which SIGTERM, and SIGHUP at the end of a connection, act as Ctrl-C: the jobs must be cancelled."""
    changed = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Another handler stays: `nohup` ignores SIGHUP.
        if signal.getsignal(number) == signal.SIG_DFL:
            with suppress(ValueError):  # Python allows signal handlers in the main thread only
                signal.signal(number, signal.default_int_handler)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
