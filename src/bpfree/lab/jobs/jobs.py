"""Many runs, several at a time, each in a process and with a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfree.disk.atomic import make_folder, write_text
from bpfree.errors import UserError
from bpfree.lab.jobs.fork_server import KILLED_SERVER, Server
from bpfree.runs import folder
from bpfree.runs.config import Config

Told = Callable[[Sequence["Job"], int, int], object]
"""Called with the jobs that run, how many are over, and how many there are."""
_LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True, eq=False)
class Job:
    """A training and where its run is to be.

    Attributes:
        name: for people.
        config: complete.
        folder: of the run. One that is there already is not run again, and an interrupted one goes on.
    """

    name: str
    config: Config
    folder: Path

    def is_over(self) -> bool:
        """Whether its run is there, whole.

        Raises:
            UserError: the folder holds a run of another config.
        """
        if not (self.folder / folder.CONFIG).exists():
            return False
        _refuse_another(self)
        return folder.read_result(self.folder) is not None

    def arguments(self) -> list[str]:
        """Of the `bpfree` that trains it, from the beginning or from where it was interrupted."""
        if (self.folder / folder.CONFIG).exists():
            place = [] if self.config.data.dir is None else ["--data-dir", self.config.data.dir]
            return ["train", "--resume", str(self.folder), "--trust", *place]  # `is_over` saw that it is this config
        return ["train", str(self.config_file), "--out", str(self.folder)]

    @property
    def config_file(self) -> Path:
        """What it is started with, beside the run."""
        return self.folder.parent / f"{self.folder.name}.yaml"

    @property
    def log_file(self) -> Path:
        """What its process says, beside the run."""
        return self.folder.parent / f"{self.folder.name}.log"


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    told: Told = lambda running, done, total: None,
) -> dict[str, str]:
    """Run those that are not over.

    Args:
        jobs: in the order in which they are started.
        at_once: how many processes.
        told: called whenever one begins or ends.

    Returns:
        What went wrong, by the job's name; the others go on all the same.

    Raises:
        KeyboardInterrupt: Ctrl-C; every running job has kept a checkpoint by then.
    """
    queue = _Queue(jobs, told)
    workers = [threading.Thread(target=queue.work) for _ in range(min(at_once, len(queue.waiting)))]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():  # a wait without end would not hear Ctrl-C on every system
                worker.join(_LOOK_EVERY)
    finally:
        queue.stop()
        for worker in workers:
            worker.join()
    return queue.failed


class _Queue:
    """What is to be done, what is going on, and what went wrong."""

    def __init__(self, jobs: Sequence[Job], told: Told) -> None:
        self.waiting = [job for job in jobs if not job.is_over()]
        self.total = len(jobs)
        self.running: dict[Job, Server | None] = {}
        self.stopped = False
        self.failed: dict[str, str] = {}
        self._told = told
        self._lock = threading.Lock()

    def work(self) -> None:
        """Take one job after another."""
        server: Server | None = None
        while (job := self._next()) is not None:
            error = ""
            try:
                arguments = _prepare(job)
                if server is None:
                    server = Server()
                if self._begin(job, server):
                    status = server.run(arguments, job.log_file)
                    if status == KILLED_SERVER:
                        server.close()
                        server = None
                    error = _last_words(job) if status else ""
            except (UserError, OSError) as failed:  # of this job; the others go on
                error = str(failed)
            self._over(job, error)
        if server is not None:
            server.close()

    def stop(self) -> None:
        """Interrupt what is going on; nothing new begins."""
        with self._lock:
            self.waiting.clear()
            self.stopped = True
            for server in self.running.values():
                if server is not None:
                    server.interrupt()

    def _next(self) -> Job | None:
        with self._lock:
            if not self.waiting:
                return None
            job = self.waiting.pop(0)
            self.running[job] = None
            self._tell()
            return job

    def _begin(self, job: Job, server: Server) -> bool:
        """Let `stop` know what runs the job; false if it was called before."""
        with self._lock:
            self.running[job] = server
            return not self.stopped

    def _over(self, job: Job, error: str) -> None:
        with self._lock:
            del self.running[job]
            if error:
                self.failed[job.name] = error
            self._tell()

    def _tell(self) -> None:
        self._told(list(self.running), self.total - len(self.waiting) - len(self.running), self.total)


def _prepare(job: Job) -> list[str]:
    make_folder(job.folder.parent)
    job.log_file.unlink(missing_ok=True)  # of an earlier try
    write_text(job.config_file, job.config.dump())
    return job.arguments()


def _last_words(job: Job) -> str:
    try:
        text = job.log_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "its process was killed before it began. The same command tries it again"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"it was killed; see {job.log_file}"


def _refuse_another(job: Job) -> None:
    there = folder.read_config(job.folder)
    for section, wanted in job.config.plain().items():
        found = there.get(section)
        pairs = wanted.items() if isinstance(wanted, dict) else [(None, wanted)]
        for key, value in pairs:
            other = found.get(key) if isinstance(found, dict) else found
            if other != value and (section, key) not in (("data", "dir"), ("train", "device")):
                name = section if key is None else f"{section}.{key}"
                raise UserError(
                    f"out: {job.folder} was run with {name} = {other}, and now it is {value}. Choose another folder "
                    "with --out, or delete that run"
                )
