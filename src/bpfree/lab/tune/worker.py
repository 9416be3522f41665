"""A worker, which takes trials of a study until enough are finished.

Any number of workers may share a study, on any machines. They communicate through the database only. Each worker counts
up in an attribute of its trial: the heartbeat. If another worker sees no change of this number for `grace` seconds, it
considers the first worker dead, marks the trial as failed and puts its parameters back into the queue. Each worker
measures these seconds with its own clock, so clocks of different machines are never compared.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from bpfree.errors import UserError
from bpfree.lab.jobs.child import INTERRUPTED, USER_ERROR
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.store import KIND, REASON, SURPLUS, open_study
from bpfree.lab.tune.trial import run_trial
from bpfree.training.allocator import keep_freed_memory
from bpfree.training.interrupt import interrupt_at_the_end

Trials = Sequence[FrozenTrial]
OnProgress = Callable[[int, float | None], None]
"""A function that takes the number of finished trials and the best value so far."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
BEAT, ATTEMPT, RETRIES = "beat", "attempt", "retry_of"  # attributes of a trial
ATTEMPTS = 3  # parameters whose workers die this often are not tried again: they may be the cause

_LOOK_EVERY = 0.2  # seconds between two looks at the study, while other workers finish their trials


def work(
    study: optuna.Study,
    plan: Plan,
    *,
    on_progress: OnProgress = lambda finished, best: None,
    going: Callable[[], bool] = lambda: True,
) -> None:
    """Take trials until the study has as many finished trials as the plan says, or the time is up.

    Args:
        study: the study, from `open_study`.
        plan: the plan, the same for all workers.
        on_progress: called before each trial.
        going: called before each trial; the worker ends when it returns False.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the running trial is put back first.
    """
    deaths = Deaths(plan.settings.grace)
    end = time.monotonic() + (plan.settings.timeout or float("inf"))
    while going() and time.monotonic() < end:
        trials = study.get_trials(deepcopy=False)
        for trial in deaths.among(trials):
            bury(study, trial)
        finished = report(trials, plan, on_progress)
        if finished >= plan.trials:
            return
        if finished + count(trials, TrialState.RUNNING) >= plan.trials or not _is_queue_ready(study, plan, trials):
            time.sleep(_LOOK_EVERY)  # do not leave yet: a running trial may die, and then this worker is needed
            continue
        with suppress(UpdateFinishedTrialError):  # this worker was considered dead, and another one has the trial now
            _take(study, plan)


def report(trials: Trials, plan: Plan, on_progress: OnProgress) -> int:
    """Call `on_progress`, and return the number of finished trials.

    Args:
        trials: all trials of the study.
        plan: the plan, whose direction says which value is the best.
        on_progress: called with the number of finished trials and the best value.
    """
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    best = min if plan.objective.direction == "minimize" else max
    finished = count(trials, *FINISHED)
    on_progress(finished, best(values) if values else None)
    return finished


def count(trials: Trials, *states: TrialState) -> int:
    """Return the number of trials that are in one of the states."""
    return sum(trial.state in states for trial in trials)


def _is_queue_ready(study: optuna.Study, plan: Plan, trials: Trials) -> bool:
    """Return True if a trial can be taken. For a grid, first put the combinations that are missing into the queue.

    Two workers may fill the queue at the same moment; `is_surplus` sorts out the combinations that are there twice.
    """
    if not plan.grid:
        return True
    present = [_params(trial) for trial in trials if trial.state != TrialState.FAIL]
    missing = [params for params in _shuffled(plan) if params not in present]
    for params in missing:
        study.enqueue_trial(params)
    return bool(missing) or count(trials, TrialState.WAITING) > 0


def _shuffled(plan: Plan) -> list[dict[str, object]]:
    """Return the combinations of a grid that will be tried, in random order.

    If the plan has fewer trials than the grid has combinations, a fixed order would try one corner of the grid only.
    """
    order = np.random.default_rng(plan.settings.seed).permutation(len(plan.grid))
    return [plan.grid[i] for i in order[: plan.trials]]


def is_surplus(number: int, trials: Trials, plan: Plan) -> bool:
    """Return True if a trial is not needed, because other workers have begun enough trials in the meantime.

    Between a worker's look at the study and `study.ask` others may begin trials: the database has no lock for both.
    Of two workers the one with the smaller trial number goes on, so exactly one of them gives way.

    Args:
        number: the number of the trial.
        trials: all trials of the study, read after the trial was begun.
        plan: the plan.
    """
    others = [
        trial
        for trial in trials
        if trial.state in FINISHED or (trial.state == TrialState.RUNNING and trial.number < number)
    ]
    this = _find(trials, number)
    # In a grid, a trial that is not from the queue would be sampled at random.
    if plan.grid and ("fixed_params" not in this.system_attrs or _params(this) in map(_params, others)):
        return True
    return len(others) >= plan.trials


def _take(study: optuna.Study, plan: Plan) -> None:
    """Carry out the next trial, from its entry in the database to its end there.

    Ctrl-C is held back while the database is written. Otherwise a trial could stay "running" although nobody runs it,
    and all others would wait `grace` seconds for it.
    """
    trial: optuna.Trial | None = None
    try:
        with interrupt_at_the_end():
            trial = study.ask()
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        if is_surplus(trial.number, study.get_trials(deepcopy=False), plan):
            trial.set_user_attr(KIND, SURPLUS)
            ending, value = TrialState.FAIL, None
        else:
            # A quarter: some beats may be late, because the database is slow, before the worker counts as dead.
            with signs_of_life(trial, plan.settings.grace / 4):
                ending, value = _outcome(trial, plan)
        with interrupt_at_the_end():
            _finish(study, trial, value, ending)
    except UpdateFinishedTrialError:
        raise
    except BaseException as error:
        if trial is not None:
            with interrupt_at_the_end():
                _give_up(study, trial, error)
        raise


def _outcome(trial: optuna.Trial, plan: Plan) -> tuple[TrialState, float | None]:
    try:
        return TrialState.COMPLETE, run_trial(trial, plan)
    except optuna.TrialPruned:
        return TrialState.PRUNED, None


def _give_up(study: optuna.Study, trial: optuna.Trial, error: BaseException) -> None:
    """End a trial after an error or Ctrl-C, unless another worker has ended it, and put its parameters back."""
    frozen = _find(study.get_trials(deepcopy=False), trial.number)
    if frozen.state != TrialState.RUNNING:
        return
    trial.set_user_attr(REASON, f"{type(error).__name__}: {error}".removesuffix(": "))
    if isinstance(error, Exception):
        bury(study, frozen)
    else:  # Ctrl-C is not the fault of the trial, so it does not count as an attempt
        _put_back(study, frozen, frozen.user_attrs.get(ATTEMPT, 1))


def _finish(study: optuna.Study, trial: optuna.Trial | int, value: float | None, state: TrialState) -> bool:
    """Write the end of a trial into the database. Return False if another worker has ended it already."""
    try:
        study.tell(trial, value, state)
    except (ValueError, UpdateFinishedTrialError) as error:  # Optuna raises a ValueError "Cannot tell ..." then
        if isinstance(error, ValueError) and "Cannot tell" not in str(error):
            raise
        return False
    return True


@contextmanager
def signs_of_life(trial: optuna.Trial, every: float) -> Iterator[None]:
    """A context in which the trial's heartbeat counts up every so many seconds.

    A thread does so, because a training step can take longer than `grace`.

    Args:
        trial: the running trial.
        every: seconds between two beats, well below `grace`.
    """
    ended = Event()

    def beat() -> None:
        number = 0
        while not ended.wait(every):
            number += 1
            try:
                trial.set_user_attr(BEAT, number)
            except StorageInternalError:
                continue  # the database may be there again at the next beat
            except UpdateFinishedTrialError:
                return

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Deaths:
    """A record of heartbeats, which tells the running trials whose worker is dead.

    Args:
        grace: seconds without a change of the heartbeat after which a worker counts as dead.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._seen: dict[int, tuple[object, float]] = {}  # by trial number: heartbeat, time of its change

    def among(self, trials: Trials) -> list[FrozenTrial]:
        """Return the running trials whose heartbeat has not changed for `grace` seconds.

        Only changes that this worker saw itself count, so a worker that has just started never declares a death at
        once.

        Args:
            trials: all trials of the study, as they are now.
        """
        now = time.monotonic()
        running = {trial.number: trial for trial in trials if trial.state == TrialState.RUNNING}
        beats = {number: trial.user_attrs.get(BEAT) for number, trial in running.items()}
        self._seen = {
            # The new object() differs from every heartbeat, also from the None of a trial before its first beat.
            number: self._seen[number] if self._seen.get(number, (object(),))[0] == beat else (beat, now)
            for number, beat in beats.items()
        }
        return [running[number] for number, (_, since) in self._seen.items() if now - since > self.grace]


def bury(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a trial whose worker is dead, and put its parameters back into the queue.

    After `ATTEMPTS` dead workers the trial counts as finished instead, or the search would never end.

    Args:
        study: the study.
        trial: the trial; nothing happens if another worker has ended it already.
    """
    attempt = trial.user_attrs.get(ATTEMPT, 1)
    if attempt >= ATTEMPTS:
        _finish(study, trial.number, None, TrialState.PRUNED)
    else:
        _put_back(study, trial, attempt + 1)


def _put_back(study: optuna.Study, trial: FrozenTrial, attempt: int) -> None:
    # Only the worker that ends the trial puts it back, so that two workers do not put it back twice.
    if _finish(study, trial.number, None, TrialState.FAIL) and (params := _params(trial)):
        study.enqueue_trial(params, user_attrs={ATTEMPT: attempt, RETRIES: trial.number})


def _find(trials: Trials, number: int) -> FrozenTrial:
    return next(trial for trial in trials if trial.number == number)


def _params(trial: FrozenTrial) -> dict[str, object]:
    """Return the parameters of a trial: those from the queue, and those that were sampled so far."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def run_worker(plan: Plan, going: Callable[[], bool] = lambda: True) -> int:
    """Take trials of a plan until enough are finished. Standard error gets an error that the user can correct.

    Args:
        plan: the plan of the search.
        going: called before each trial; the worker ends when it returns False.

    Returns:
        The exit status: 0, 2 after a UserError or OSError, 130 after Ctrl-C.
    """
    keep_freed_memory()
    try:
        with open_study(plan) as study:
            work(study, plan, going=going)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def main() -> None:
    """Run a worker in this process: read a plan as JSON from standard input, and end with the process that started it.

    The worker looks at the parent's process id, because a signal at the parent's end does not exist on every system.
    """
    parent = os.getppid()
    plan = Plan.model_validate_json(sys.stdin.read())
    sys.exit(run_worker(plan, going=lambda: os.getppid() == parent))
