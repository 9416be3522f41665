"""The study in its database: opened or begun by whoever comes first, and only ever for one search."""

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

SEARCH = "search"  # the study's attribute that says what is searched
KIND, REASON = "kind", "reason"  # attributes of a trial that was stopped
REFUSED, SURPLUS = "refused", "surplus"

_TRIES = 6  # to open a database, which two may be setting up at once
_PATIENCE = 60  # seconds that a writer waits for another, in SQLite


@contextmanager
def open_study(plan: Plan) -> Iterator[optuna.Study]:
    """Within it, the study of a plan; it is begun if it is not there, or if nothing has come of it yet.

    Raises:
        UserError: the database cannot be reached, or the study there is another search.
    """
    with _told_in_one_line(plan.storage), _quiet_optuna():
        storage = _open_storage(plan.storage)
        try:
            yield _begin_or_join(plan, storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _begin_or_join(plan: Plan, storage: RDBStorage) -> optuna.Study:
    if _may_be_begun_anew(plan, storage):
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
    refuse_another(study.user_attrs[SEARCH], plan)
    return study


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """It would log every trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _told_in_one_line(url: str) -> Iterator[None]:
    """What a database objects to, in one line."""
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
    arguments: dict[str, Any] = {"connect_args": {"timeout": _PATIENCE}} if is_sqlite else {"pool_pre_ping": True}
    for left in range(_TRIES - 1, -1, -1):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except (ImportError, NoSuchModuleError) as error:
            raise UserError(
                f"storage: the driver of {_without_password(url)} is not installed ({error.__cause__ or error}). For "
                "PostgreSQL: pip install 'bpfree[postgres]'"
            ) from error
        except SQLAlchemyError:  # such as a table that another made a moment ago
            if not left:
                raise
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "its URL"


def _may_be_begun_anew(plan: Plan, storage: RDBStorage) -> bool:
    """Whether there is another search of that name and nothing came of it, as after a mistake in the config."""
    try:
        study = optuna.load_study(study_name=plan.study, storage=storage)
    except KeyError:
        return False
    gone = (TrialState.FAIL, TrialState.WAITING)
    nothing = all(t.state in gone or t.user_attrs.get(KIND) == REFUSED for t in study.get_trials(deepcopy=False))
    return nothing and study.user_attrs.get(SEARCH, plan.described()) != plan.described()


def refuse_another(begun: Mapping[str, Any], plan: Plan) -> None:
    """Raise UserError, naming the first difference, if the study is another search than the plan."""
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
    """Samples each trial from a stream of its own, keyed by (seed, number of the trial).

    Two workers would otherwise draw the same values, and a search that goes on would not draw what an undisturbed one
    does.
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
        """As the trial's own sampler does."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the trial's own sampler does."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the trial's own sampler does."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of constant_liar, before Optuna 5
        return TPESampler(seed=seed, constant_liar=True)  # what runs elsewhere counts as bad, so workers spread out


def _pruner(plan: Plan) -> BasePruner:
    """Resources are epochs."""
    kind = plan.settings.pruner
    if kind == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if kind == "hyperband":
        train = plan.values.get("train")
        epochs = train.get("epochs") if isinstance(train, Mapping) else None
        return HyperbandPruner(min_resource=1, max_resource=epochs if isinstance(epochs, int) else "auto")
    return MedianPruner() if kind == "median" else NopPruner()
