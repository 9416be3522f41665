"""The results of a search: the best config, all trials, the best values for each setting, and two pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bpfree.disk.atomic import write_text
from bpfree.errors import UserError
from bpfree.lab.tune.pictures import plot_importance, plot_parallel
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.store import KIND, REASON, SURPLUS
from bpfree.lab.tune.worker import RETRIES
from bpfree.runs.config import Config
from bpfree.runs.markers import Choice, Marker

BEST, STUDY, IMPORTANCE, PARALLEL = "best.yaml", "study.json", "importance.png", "parallel.png"
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Tuned:
    """The results of a search.

    Attributes:
        folder: the folder with best.yaml, study.json, importance.png and parallel.png.
        config: the config of the best trial, complete.
        best: the best trial, one of `trials`.
        trials: all trials in plain values: `number`, `state`, `value` and its `values` by seed, `params`, `seconds`,
            `reason`, ...
        settings: the best trial for each combination of choices, best first: `setting`, `values`, `value`, the number
            of the `trial`, and the number of `trials` with this setting.
        metric: the metric that trials are judged by, such as validation/accuracy.
    """

    folder: Path
    config: Config
    best: dict[str, Any]
    trials: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    metric: str


def conclude(study: optuna.Study, plan: Plan) -> Tuned:
    """Write the results of all trials so far into the plan's folder.

    Args:
        study: the study.
        plan: the plan of the search.

    Raises:
        UserError: no trial finished with a value.
    """
    # A waiting trial is only an entry in the queue: nobody has begun it.
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    # Surplus trials were given up before they trained; see `is_surplus`.
    trials = [describe(trial) for trial in begun if trial.user_attrs.get(KIND) != SURPLUS]
    ranked = rank(trials, plan)
    if not ranked:
        raise _no_value(trials)
    best = ranked[0]
    config = plan.config_of(best["params"])
    settings = best_settings(ranked, plan.markers)
    write_text(plan.out / BEST, config.dump())
    described = {
        "study": plan.study,
        "metric": str(plan.objective),
        "direction": plan.objective.direction,
        "best": best,
        "settings": settings,
        "search": plan.described(),
        "trials": trials,
    }
    write_text(plan.out / STUDY, json.dumps(described, indent=1) + "\n")
    plot_importance(_importances(study, ranked), str(plan.objective), plan.out / IMPORTANCE)
    plot_parallel(ranked, plan.markers, str(plan.objective), plan.out / PARALLEL)
    return Tuned(plan.out, config, best, trials, settings, str(plan.objective))


def describe(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial in plain values; `value` is None unless the trial is complete."""
    attributes = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE
    silent = trial.state in (TrialState.FAIL, TrialState.PRUNED)
    return {
        "number": trial.number,
        "state": _STATES.get(trial.state, trial.state.name.lower()),
        "value": trial.value if complete else None,
        "values": attributes.get("values"),
        "params": trial.params,
        "seconds": attributes.get("seconds"),
        "reason": attributes.get(REASON, "its worker ended without a word" if silent else None),
        "kind": attributes.get(KIND),
        "epochs": len(trial.intermediate_values),
        "retry_of": attributes.get(RETRIES),
        "worker": attributes.get("worker"),
        "threads": attributes.get("threads"),
    }


def rank(trials: Sequence[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return the trials that have a value, best first; of equal trials the one that began first.

    Args:
        trials: trials as `describe` returns them.
        plan: the plan, whose direction says which value is better.
    """
    complete = [trial for trial in trials if trial["value"] is not None]
    # With reverse=True, `sorted` still keeps the order of equal trials. To reverse a sorted list would not.
    return sorted(complete, key=lambda trial: trial["value"], reverse=plan.objective.direction == "maximize")


def best_settings(ranked: Sequence[dict[str, Any]], markers: Mapping[str, Marker]) -> list[dict[str, Any]]:
    """Return the best trial for each setting: each combination of choices between things (rules, nets, activations).

    Numbers, such as the learning rate, are not part of a setting: their best value is wanted for each setting.

    Args:
        ranked: trials that have a value, best first.
        markers: the markers by the name of the parameter.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial in ranked:
        setting = {name: value for name, value in trial["params"].items() if is_setting(markers[name])}
        # Text, because a dict cannot be a key. Text also tells 1 from True, which Python takes for one key.
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(trial)
    return [
        {
            "setting": json.loads(key),
            "values": {name: value for name, value in group[0]["params"].items() if not is_setting(markers[name])},
            "value": group[0]["value"],
            "trial": group[0]["number"],
            "trials": len(group),
        }
        # A dict keeps the order of insertion: the best trial is the first of its group, and the best group comes first.
        for key, group in groups.items()
    ]


def is_setting(marker: Marker) -> bool:
    """Return True if a marker chooses between things and not between numbers."""
    if not isinstance(marker, Choice):
        return False
    return not all(isinstance(label, int | float) and not isinstance(label, bool) for label in marker.labels)


def _no_value(trials: Sequence[dict[str, Any]]) -> UserError:
    stopped = [trial for trial in trials if trial["state"] == "pruned"]
    if not stopped:
        return UserError("no trial was finished. The same command goes on")
    first = stopped[0]
    what = "was refused" if all(trial["kind"] == "refused" for trial in stopped) else "came to an end"
    who = "every one" if what == "was refused" else "none"
    return UserError(f"{who} of {len(stopped)} trials {what}. Trial {first['number']}: {first['reason']}")


def _importances(study: optuna.Study, ranked: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the importance of each parameter by Optuna; empty if all values are equal."""
    if len({trial["value"] for trial in ranked}) < 2:
        return {}
    return optuna.importance.get_param_importances(study)
