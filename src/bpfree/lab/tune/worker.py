"""A worker takes trials of a study until enough are finished. Any number may work on one study, on any machines.

Nothing but the database is between them. A worker shows that it lives by counting in an attribute of its trial; whoever
sees the count stand still for the grace time takes the worker for dead, marks the trial as failed and puts its
parameters back. No clock is compared with that of another machine.
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
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.store import KIND, REASON, SURPLUS, open_study
from bpfree.lab.tune.trial import run_trial
from bpfree.training.allocator import keep_freed_memory
from bpfree.training.interrupt import interrupt_at_the_end

Trials = Sequence[FrozenTrial]
Told = Callable[[int, float | None], None]
"""Takes how many trials are finished and the best value so far."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
BEAT, ATTEMPT, RETRIES = "beat", "attempt", "retry_of"  # attributes of a trial
ATTEMPTS = 3  # a trial that ends its workers so often is left alone

_LOOK_EVERY = 0.2  # seconds, while others finish


def work(
    study: optuna.Study,
    plan: Plan,
    *,
    told: Told = lambda finished, best: None,
    going: Callable[[], bool] = lambda: True,
) -> None:
    """Take trials until the study has as many finished ones as the plan says, or the time is up.

    Args:
        study: as `open_study` gives it.
        plan: the same for all workers.
        told: called before each.
        going: asked before each trial whether to go on.

    Raises:
        KeyboardInterrupt: Ctrl-C; the running trial is put back.
    """
    deaths = Deaths(plan.settings.grace)
    end = time.monotonic() + (plan.settings.timeout or float("inf"))
    while going() and time.monotonic() < end:
        trials = study.get_trials(deepcopy=False)
        for dead in deaths.among(trials):
            bury(study, dead)
        finished = tell(trials, plan, told)
        if finished >= plan.trials:
            return
        if finished + count(trials, TrialState.RUNNING) >= plan.trials or not _is_queue_ready(study, plan, trials):
            time.sleep(_LOOK_EVERY)  # one of those may die
            continue
        with suppress(UpdateFinishedTrialError):  # it was taken for dead, and somebody else has it now
            _take(study, plan)


def tell(trials: Trials, plan: Plan, told: Told) -> int:
    """How many are finished; the same and the best value are told."""
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    best = min if plan.objective.direction == "minimize" else max
    finished = count(trials, *FINISHED)
    told(finished, best(values) if values else None)
    return finished


def count(trials: Trials, *states: TrialState) -> int:
    """How many are in one of these states."""
    return sum(trial.state in states for trial in trials)


def _is_queue_ready(study: optuna.Study, plan: Plan, trials: Trials) -> bool:
    """A grid is a queue of all its combinations; it is filled by whoever finds some missing."""
    if not plan.grid:
        return True
    there = [_params(trial) for trial in trials if trial.state != TrialState.FAIL]
    missing = [params for params in _shuffled(plan) if params not in there]
    for params in missing:
        study.enqueue_trial(params)
    return bool(missing) or count(trials, TrialState.WAITING) > 0


def _shuffled(plan: Plan) -> list[dict[str, object]]:
    """Those of a grid that are to be tried: if not all, then not one corner of it."""
    order = np.random.default_rng(plan.settings.seed).permutation(len(plan.grid))
    return [plan.grid[i] for i in order[: plan.trials]]


def is_surplus(number: int, trials: Trials, plan: Plan) -> bool:
    """Whether others got there first, between a look at the study and the beginning of this trial."""
    others = [
        trial
        for trial in trials
        if trial.state in FINISHED or (trial.state == TrialState.RUNNING and trial.number < number)
    ]
    own = _find(trials, number)
    if plan.grid and ("fixed_params" not in own.system_attrs or _params(own) in map(_params, others)):
        return True
    return len(others) >= plan.trials


def _take(study: optuna.Study, plan: Plan) -> None:
    """The next trial, from its entry in the database to its end there; Ctrl-C never leaves it between the two."""
    trial: optuna.Trial | None = None
    try:
        with interrupt_at_the_end():
            trial = study.ask()
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        if is_surplus(trial.number, study.get_trials(deepcopy=False), plan):
            trial.set_user_attr(KIND, SURPLUS)
            ending, value = TrialState.FAIL, None
        else:
            with signs_of_life(trial, plan.settings.grace / 4):
                ending, value = _outcome(trial, plan)
        with interrupt_at_the_end():
            _tell(study, trial, value, ending)
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
    """End a trial that an error or Ctrl-C broke off, if nobody has ended it, and put its parameters back."""
    own = _find(study.get_trials(deepcopy=False), trial.number)
    if own.state != TrialState.RUNNING:
        return
    trial.set_user_attr(REASON, f"{type(error).__name__}: {error}".removesuffix(": "))
    if isinstance(error, Exception):
        bury(study, own)
    else:  # Ctrl-C is no fault of the trial
        _put_back(study, own, own.user_attrs.get(ATTEMPT, 1))


def _tell(study: optuna.Study, trial: optuna.Trial | int, value: float | None, state: TrialState) -> bool:
    """Whether it could be told: not if another worker has ended the trial."""
    try:
        study.tell(trial, value, state)
    except (ValueError, UpdateFinishedTrialError) as error:  # Optuna's words for a trial that is over
        if isinstance(error, ValueError) and "Cannot tell" not in str(error):
            raise
        return False
    return True


@contextmanager
def signs_of_life(trial: optuna.Trial, every: float) -> Iterator[None]:
    """Within it, the trial's attribute counts on every so many seconds."""
    ended = Event()

    def beat() -> None:
        number = 0
        while not ended.wait(every):
            number += 1
            try:
                trial.set_user_attr(BEAT, number)
            except StorageInternalError:
                continue  # the database may be back for the next
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
    """Tells which running trials have lost their worker.

    Args:
        grace: seconds for which a count has to stand still, by this machine's clock.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._seen: dict[int, tuple[object, float]] = {}  # by trial: the count, and since when it has been that

    def among(self, trials: Trials) -> list[FrozenTrial]:
        """Those that have, as far as this worker has seen."""
        now = time.monotonic()
        running = {trial.number: trial for trial in trials if trial.state == TrialState.RUNNING}
        counts = {number: trial.user_attrs.get(BEAT) for number, trial in running.items()}
        self._seen = {
            number: self._seen[number] if self._seen.get(number, (object(),))[0] == beat else (beat, now)
            for number, beat in counts.items()
        }
        return [running[number] for number, (_, since) in self._seen.items() if now - since > self.grace]


def bury(study: optuna.Study, trial: FrozenTrial) -> None:
    """Mark a trial whose worker is dead as failed and put its parameters back, unless it has ended too many."""
    attempt = trial.user_attrs.get(ATTEMPT, 1)
    if attempt >= ATTEMPTS:
        _tell(study, trial.number, None, TrialState.PRUNED)
    else:
        _put_back(study, trial, attempt + 1)


def _put_back(study: optuna.Study, trial: FrozenTrial, attempt: int) -> None:
    if _tell(study, trial.number, None, TrialState.FAIL) and (params := _params(trial)):
        study.enqueue_trial(params, user_attrs={ATTEMPT: attempt, RETRIES: trial.number})


def _find(trials: Trials, number: int) -> FrozenTrial:
    return next(trial for trial in trials if trial.number == number)


def _params(trial: FrozenTrial) -> dict[str, object]:
    """As far as they were chosen."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def main() -> None:
    """A worker as a process of its own: takes a plan as JSON, and ends with the process that started it."""
    keep_freed_memory()
    parent = os.getppid()
    plan = Plan.model_validate_json(sys.stdin.read())
    try:
        with open_study(plan) as study:
            work(study, plan, going=lambda: os.getppid() == parent)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
