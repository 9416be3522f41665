"""The study in its database. The first worker creates it, the others join; a study never holds two searches."""

import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from bpfree.errors import UserError
from bpfree.lab.tune.plan import Plan

SEARCH = "search"  # attribute of the study: the description of the search
KIND, REASON = "kind", "reason"  # attributes of a trial that was stopped: how, and why
REFUSED, SURPLUS = "refused", "surplus"

_TRIES = 6  # to open a database; it fails while another worker creates the tables
_PATIENCE = 60  # seconds that a writer waits for another, in SQLite


@contextmanager
def open_study(plan: Plan) -> Iterator[optuna.Study]:
    """A context with the study of a plan. It is created if it does not exist, or has no result yet.

    Args:
        plan: the plan of the search.

    Raises:
        UserError: the database cannot be reached, or the study holds another search.
    """
    with _error_in_one_line(plan.storage), _quiet_optuna():
        storage = _open_storage(plan.storage)
        try:
            yield _begin_or_join(plan, storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _begin_or_join(plan: Plan, storage: RDBStorage) -> optuna.Study:
    if _is_without_result(plan, storage):
        optuna.delete_study(study_name=plan.study, storage=storage)
    study = optuna.create_study(
        storage=storage,
        study_name=plan.study,
        direction=plan.objective.direction,
        sampler=KeyedSampler(plan),
        pruner=_pruner(plan),
        load_if_exists=True,
    )
    if SEARCH not in study.user_attrs:
        study.set_user_attr(SEARCH, plan.described())
    # Read from the database again: another worker may have written another search at the same moment.
    refuse_another(study.user_attrs[SEARCH], plan)
    return study


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """A context in which Optuna does not log every trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _error_in_one_line(url: str) -> Iterator[None]:
    """A context that turns errors of the database into a UserError of one line, without the password."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise UserError(f"storage: {_without_password(url)} cannot be used ({text})") from error


def _open_storage(url: str) -> RDBStorage:
    try:
        is_sqlite = make_url(url).get_backend_name() == "sqlite"
    except ArgumentError:
        raise UserError("storage: found no URL, allowed: such as postgresql+psycopg://user@host/database") from None
    # A server may close a connection that is idle during a long training; "pre_ping" opens a new one then.
    arguments: dict[str, Any] = {"connect_args": {"timeout": _PATIENCE}} if is_sqlite else {"pool_pre_ping": True}
    for left in range(_TRIES - 1, -1, -1):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except (ImportError, NoSuchModuleError) as error:
            raise UserError(
                f"storage: the driver of {_without_password(url)} is not installed ({error.__cause__ or error}). For "
                "PostgreSQL: pip install 'bpfree[postgres]'"
            ) from error
        except SQLAlchemyError:  # another worker may have created a table a moment ago
            if not left:
                raise
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "its URL"


def _is_without_result(plan: Plan, storage: RDBStorage) -> bool:
    """Return True if the name belongs to another search without any result.

    That is so after a mistake in the config, when every trial was refused. The user corrects the config and runs the
    same command; the useless study must not stand in the way.
    """
    try:
        study = optuna.load_study(study_name=plan.study, storage=storage)
    except KeyError:
        return False
    without = (TrialState.FAIL, TrialState.WAITING)
    no_result = all(t.state in without or t.user_attrs.get(KIND) == REFUSED for t in study.get_trials(deepcopy=False))
    return no_result and study.user_attrs.get(SEARCH, plan.described()) != plan.described()


def refuse_another(begun: Mapping[str, Any], plan: Plan) -> None:
    """Raise UserError, naming the first difference, if the study holds another search than the plan.

    Args:
        begun: the description of the search in the study.
        plan: the plan, whose description is compared with it.
    """
    now = plan.described()
    if begun == now:
        return
    key, before, after = next(_differences(begun, now, ""))
    raise UserError(
        f"tune: the study {plan.study} was begun with {key}={before}, found {after}. Go on with what it was begun "
        "with, or search in another folder (--out)"
    )


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield path, a, b


class KeyedSampler(BaseSampler):
    """A sampler that draws each trial from a separate random stream, keyed by (seed, number of the trial).

    With one stream for all, two workers that start with the same seed would draw the same values. And a search that was
    stopped and continued would draw other values than one that was not.

    Args:
        plan: the plan, which names the sampler and the seed.
    """

    def __init__(self, plan: Plan) -> None:
        self._make: Callable[[int], BaseSampler] = RandomSampler if plan.settings.sampler == "random" else _tpe
        self._seed = plan.settings.seed
        self._latest: tuple[int, BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._latest is None or self._latest[0] != trial.number:
            key = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            self._latest = trial.number, self._make(key)
        return self._latest[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Delegate to the sampler of this trial."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Delegate to the sampler of this trial."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Delegate to the sampler of this trial."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # constant_liar is experimental before Optuna 5
        return TPESampler(seed=seed, constant_liar=True)  # running trials count as bad, so workers spread out


def _pruner(plan: Plan) -> BasePruner:
    """Return the pruner of the plan; its resource is the epoch."""
    kind = plan.settings.pruner
    if kind == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if kind == "hyperband":
        train = plan.values.get("train")
        epochs = train.get("epochs") if isinstance(train, Mapping) else None
        return HyperbandPruner(min_resource=1, max_resource=epochs if isinstance(epochs, int) else "auto")
    return MedianPruner() if kind == "median" else NopPruner()
