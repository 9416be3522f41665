"""The function that a job of submitit runs: it hears Slurm's signals as it hears Ctrl-C."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_GRACE = 1.0  # seconds between the two signals that Slurm sends to a job that it preempts
_PATIENCE = (
    20  # seconds until another signal acts: libraries may swallow an exception that is raised in their callbacks
)


class JobFailedError(RuntimeError):
    """The function of a job ended with another status than 0."""


@dataclass(frozen=True)
class Submitted:
    """A function as submitit calls it in a job.

    Slurm sends SIGTERM to a job that is cancelled, and SIGUSR2 before the job's time is over or when it gives the
    machine to another job. Both act as Ctrl-C, so a training keeps a checkpoint. After SIGUSR2, submitit puts the job
    back into the queue, where the same function goes on.

    Attributes:
        function: returns an exit status, as a process does. It is a function of a module, so its pickle has only its
            name.
    """

    function: Callable[..., int]

    def __call__(self, *args: Any) -> None:
        """Call the function, then put the job back into the queue if Slurm ended it early.

        Args:
            args: arguments of the function; only plain values and paths, since submitit pickles them.

        Raises:
            JobFailedError: the status is not 0. It makes the job a failed one.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # the handler of submitit
        heard: list[int] = []
        pressed = float("-inf")

        def end(number: int, frame: Any) -> None:
            nonlocal pressed
            heard.append(number)
            if time.monotonic() - pressed > _PATIENCE:
                pressed = time.monotonic()
                # Called and not raised as a signal: jobs on this machine have SIGINT blocked, see `Cluster.submit`.
                press = signal.getsignal(signal.SIGINT)
                assert callable(press)
                press(signal.SIGINT, frame)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGUSR2, end)
        status = self.function(*args)
        if status and heard and signal.SIGUSR2 not in heard:
            time.sleep(_GRACE)
        if status and signal.SIGUSR2 in heard and callable(requeue):
            requeue(signal.SIGUSR2, None)  # it ends this process
        if status:
            raise JobFailedError(f"the job ended with status {status}")

    def checkpoint(self, *args: Any) -> Any:
        """Return what submitit runs after the job was put back: the same function, which goes on where it stopped.

        Args:
            args: the arguments of the function.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)
