"""Many trainings, several at a time, each in its own process and with one thread."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bpfree.data import Dataset
from bpfree.disk.atomic import make_folder, write_text
from bpfree.errors import UserError
from bpfree.lab.jobs.fork_server import KILLED_SERVER, Server
from bpfree.rule import Rule
from bpfree.runs import folder
from bpfree.runs.config import Config
from bpfree.runs.load import load
from bpfree.runs.run import Run
from bpfree.tasks import Loss

OnProgress = Callable[[Sequence["Job"], int, int], object]
"""A function that is called with the running jobs, the number of finished jobs and the number of all jobs."""
_LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Objects:
    """Python objects that a training uses in place of what its config names.

    Attributes:
        make_net: makes the net with its first weights; None if the config names it.
        make_rule: makes the rule; None if the config names it.
        dataset: the data; None if the config names them.
        loss: used in place of the task's loss, or None.
    """

    make_net: Callable[[], nn.Module] | None = None
    make_rule: Callable[[], Rule] | None = None
    dataset: Dataset | None = None
    loss: Loss | None = None

    def __bool__(self) -> bool:
        """Return True if there is an object, so that no other process can train."""
        return any(part is not None for part in (self.make_net, self.make_rule, self.dataset, self.loss))

    def made(self) -> dict[str, Any]:
        """Return the new net and the new rule by the names of the arguments of `train` and `load`; None for none."""
        return {
            "net": None if self.make_net is None else self.make_net(),
            "rule": None if self.make_rule is None else self.make_rule(),
            "loss": self.loss,
        }


@dataclass(frozen=True, eq=False)
class Job:
    """A training, and the folder for its run.

    Attributes:
        name: shown to people in progress bars and errors.
        config: the complete config.
        folder: the run folder. A finished run there is not repeated, and an interrupted run goes on.
        objects: used in place of what the config names. A job with objects is for `bpfree.lab.jobs.here`.
    """

    name: str
    config: Config
    folder: Path
    objects: Objects = Objects()

    def is_over(self) -> bool:
        """Return True if the folder holds the finished run.

        Raises:
            UserError: the folder holds a run of another config.
        """
        if not (self.folder / folder.CONFIG).exists():
            return False
        _refuse_another(self)
        return folder.read_result(self.folder) is not None

    def prepare(self) -> None:
        """Write the config file, and delete the log of an earlier try.

        Raises:
            UserError: the config file cannot be written.
        """
        make_folder(self.folder.parent)
        self.log_file.unlink(missing_ok=True)  # the last words of an earlier try must not be reported again
        write_text(self.config_file, self.config.dump())

    def load(self) -> Run:
        """Load the finished run; its config is that of this job, so names such as "module:Class" are imported."""
        return load(self.folder, **self.objects.made(), trust=True)

    @property
    def config_file(self) -> Path:
        """The file beside the run folder from which the training reads its config."""
        return self.folder.parent / f"{self.folder.name}.yaml"

    @property
    def log_file(self) -> Path:
        """The file beside the run folder that gets what the training prints."""
        return self.folder.parent / f"{self.folder.name}.log"


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    on_progress: OnProgress = lambda running, done, total: None,
) -> dict[str, str]:
    """Train every job that is not over.

    A job that fails does not stop the others.

    Args:
        jobs: started in this order.
        at_once: the number of jobs that run at the same time.
        on_progress: called whenever a job begins or ends, from any thread but never from two at once.

    Returns:
        The error of each failed job, by the job's name.

    Raises:
        UserError: a folder holds a run of another config.
        KeyboardInterrupt: Ctrl-C was pressed. By then every running job has kept a checkpoint.

    Example:
        >>> run_jobs([], at_once=2)
        {}
    """
    queue = _Queue(jobs, on_progress)
    with ThreadPoolExecutor(at_once) as pool:
        # Futures and not threads: a `Thread.join` that Ctrl-C interrupts marks its thread as ended, though it runs, in
        # Python before 3.13. Then nobody would wait for the checkpoints.
        workers = [pool.submit(queue.work) for _ in range(min(at_once, len(queue.waiting)))]
        try:
            while wait(workers, timeout=_LOOK_EVERY).not_done:  # on Windows, waiting without a timeout blocks Ctrl-C
                pass
        finally:
            queue.stop()
            wait(workers)
    for worker in workers:
        worker.result()  # raises what a defect of bpfree raised in the thread
    return queue.failed


class _Queue:
    """The jobs that wait, run and failed, shared by the threads that work on them.

    Args:
        jobs: all jobs; jobs that are over do not wait.
        on_progress: called whenever a job begins or ends.

    Attributes:
        waiting: jobs that have not begun, the next one first.
        total: the number of all jobs.
        running: the server that trains each running job; None until the job has one.
        stopped: True after `stop`.
        failed: the error of each failed job, by its name.
    """

    def __init__(self, jobs: Sequence[Job], on_progress: OnProgress) -> None:
        self.waiting = [job for job in jobs if not job.is_over()]
        self.total = len(jobs)
        self.running: dict[Job, Server | None] = {}
        self.stopped = False
        self.failed: dict[str, str] = {}
        self._on_progress = on_progress
        self._lock = threading.Lock()  # held for every read and write of the attributes above

    def work(self) -> None:
        """Train one job after another until none waits; each thread calls this once, and has its own server."""
        server: Server | None = None
        while (job := self._next()) is not None:
            error = ""
            try:
                job.prepare()
                if server is None:
                    server = Server()
                if self._begin(job, server):
                    status = server.run(job.config_file, job.folder, job.log_file)
                    if status == KILLED_SERVER:  # for example by a system without memory; the next job gets a new one
                        server.close()
                        server = None
                    error = _last_words(job) if status else ""
            except (UserError, OSError) as failed:  # an error of this job; the others go on
                error = str(failed)
            self._end(job, error)
        if server is not None:
            server.close()

    def stop(self) -> None:
        """Interrupt the running jobs, and let no other job begin."""
        with self._lock:
            self.waiting.clear()
            self.stopped = True
            for server in self.running.values():
                if server is not None:
                    server.interrupt()

    def _next(self) -> Job | None:
        """Take the next waiting job, or return None if there is none."""
        with self._lock:
            if not self.waiting:
                return None
            job = self.waiting.pop(0)
            self.running[job] = None
            self._report()
            return job

    def _begin(self, job: Job, server: Server) -> bool:
        """Let `stop` know which server trains a job; return False if `stop` was called before."""
        with self._lock:
            self.running[job] = server
            return not self.stopped

    def _end(self, job: Job, error: str) -> None:
        """Note that a job has ended, and its error if it has one."""
        with self._lock:
            del self.running[job]
            if error:
                self.failed[job.name] = error
            self._report()

    def _report(self) -> None:
        """Call `on_progress`; the caller holds the lock."""
        self._on_progress(list(self.running), self.total - len(self.waiting) - len(self.running), self.total)


def _last_words(job: Job) -> str:
    """Return why a job failed: the last line of its log."""
    try:
        text = job.log_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "its process was killed before it began. The same command tries it again"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"it was killed; see {job.log_file}"


def _refuse_another(job: Job) -> None:
    """Raise UserError if the run in a job's folder has another config. Data folder and device may differ."""
    begun = folder.read_config(job.folder)
    for section, wanted in job.config.plain().items():
        there = begun.get(section)
        pairs = wanted.items() if isinstance(wanted, dict) else [(None, wanted)]
        for key, value in pairs:
            other = there.get(key) if isinstance(there, dict) else there
            if other != value and (section, key) not in (("data", "dir"), ("train", "device")):
                name = section if key is None else f"{section}.{key}"
                raise UserError(
                    f"out: {job.folder} was run with {name} = {other}, and now it is {value}. Choose another folder "
                    "with --out, or delete that run"
                )
