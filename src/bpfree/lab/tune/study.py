"""The Python door to a search, and its conduct: workers in this process or in others, then what came of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from bpfree import checkpoint, folder
from bpfree.data import DATASETS, data_directory
from bpfree.errors import UserError, check_positive
from bpfree.lab.tune.plan import Plan, make_plan
from bpfree.lab.tune.results import Tuned, conclude
from bpfree.lab.tune.space import is_marker
from bpfree.lab.tune.store import open_study
from bpfree.lab.tune.trial import without_test
from bpfree.lab.tune.worker import Trials, count, work

TEMPLATE = "tune.yaml"  # what is searched, as it was given
_LOOK_EVERY = 0.5  # seconds
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def tune(
    config: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    workers: int = 1,
    data_dir: str | Path | None = None,
) -> Tuned:
    """Search for the best values of what a config leaves open; the same call goes on with a search.

    Args:
        config: a YAML file, a shipped config or plain values, with markers such as
            `lr: {search: log, low: 1e-4, high: 1e-1}` and a section `tune`; see `bpfree.lab.tune.plan.TuneConfig`.
        overrides: `section.key=value`, as on the command line.
        out: folder of the study; default: runs/tune-<dataset>-<rule>.
        storage: URL of a database that Optuna takes, for workers on several machines; default: SQLite in the folder.
        workers: processes of one thread each; 1 trains in this one.
        data_dir: where data sets are.

    Returns:
        The best config, and all trials.

    Raises:
        UserError: anything that cannot work, said in one line; no trial came to an end.
    """
    return search(make_plan(config, overrides, out=out, storage=storage, data_dir=data_dir), workers)


def search(plan: Plan, workers: int = 1, told: Callable[[Trials], None] = lambda trials: None) -> Tuned:
    """Carry out a plan, or go on with it.

    Args:
        plan: see `make_plan`.
        workers: processes of one thread each; 1 trains in this one.
        told: called with all trials, every now and then.

    Raises:
        UserError: the study is another search, its database cannot be reached, or no trial came to an end.
        KeyboardInterrupt: Ctrl-C; running trials are put back.
    """
    check_positive("workers", workers)
    _refuse_missing_data(plan)
    folder.create(plan.out)
    with open_study(plan) as study:
        checkpoint.write_text(plan.out / TEMPLATE, yaml.safe_dump(plan.template(), sort_keys=False))
        if workers == 1:
            work(study, plan, told=told)
        else:
            _supervise(study, plan, workers, told)
        told(study.get_trials(deepcopy=False))
        return conclude(study, plan)


def _refuse_missing_data(plan: Plan) -> None:
    """Now and not in every trial."""
    spec = plan.values.get("data") or {}
    name = spec.get("name", "digits") if isinstance(spec, Mapping) and not is_marker(spec) else spec
    if isinstance(name, str) and name in DATASETS:
        place = plan.data_dir or (spec.get("dir") if isinstance(spec, Mapping) else None)
        without_test(name, data_directory(place))


def _supervise(study: optuna.Study, plan: Plan, workers: int, told: Callable[[Trials], None]) -> None:
    """Start workers and wait for them. They are no group of the terminal's, so that Ctrl-C reaches each once."""
    logs = [plan.out / f"worker-{number}.log" for number in range(1, workers + 1)]
    processes = [_start(plan, log) for log in logs]
    try:
        while any(process.poll() is None for process in processes):
            told(study.get_trials(deepcopy=False))
            time.sleep(_LOOK_EVERY)
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()
        raise
    trials = study.get_trials(deepcopy=False)
    if count(trials, TrialState.COMPLETE, TrialState.PRUNED) < plan.trials:
        failed = [log for log, process in zip(logs, processes, strict=True) if process.returncode]
        if len(failed) == workers:
            last = (failed[0].read_text(encoding="utf-8").strip().splitlines() or ["it was killed"])[-1]
            raise UserError(f"every worker ended early; {failed[0]}: {last.removeprefix('error: ')}")


def _start(plan: Plan, log: Path) -> "subprocess.Popen[bytes]":
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from bpfree.lab.tune.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            start_new_session=True,
        )
    assert process.stdin is not None
    process.stdin.write(plan.model_dump_json().encode())
    process.stdin.close()
    return process
