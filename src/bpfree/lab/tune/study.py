"""The conduct of a search: workers in this process or in others, then what came of it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import optuna
import yaml

from bpfree.data import DATASETS
from bpfree.disk.atomic import write_text
from bpfree.errors import UserError, check_positive
from bpfree.lab.jobs.fork_server import python
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.results import Tuned, conclude
from bpfree.lab.tune.store import open_study
from bpfree.lab.tune.trial import without_test
from bpfree.lab.tune.worker import Told, tell, work
from bpfree.runs import folder
from bpfree.runs.data_config import DataConfig
from bpfree.runs.markers import find_markers, is_marker

TEMPLATE = "tune.yaml"  # what is searched, as it was given
_LOOK_EVERY = 0.5  # seconds
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def search(plan: Plan, workers: int = 1, told: Told = lambda finished, best: None) -> Tuned:
    """Carry out a plan, or go on with it.

    Args:
        plan: see `make_plan`.
        workers: processes of one thread each; 1 trains in this one.
        told: called every now and then.

    Raises:
        UserError: the study is another search, its database cannot be reached, or no trial came to an end.
        KeyboardInterrupt: Ctrl-C; running trials are put back.
    """
    check_positive("workers", workers)
    _refuse_missing_data(plan)
    folder.create(plan.out)
    with open_study(plan) as study:
        write_text(plan.out / TEMPLATE, yaml.safe_dump(plan.template(), sort_keys=False))
        if workers == 1:
            work(study, plan, told=told)
        elif tell(study.get_trials(deepcopy=False), plan, told) < plan.trials:
            _supervise(study, plan, workers, told)
        tell(study.get_trials(deepcopy=False), plan, told)
        return conclude(study, plan)


def _refuse_missing_data(plan: Plan) -> None:
    """Now and not in every trial."""
    spec = plan.values.get("data") or {}
    name = spec.get("name", "digits") if isinstance(spec, Mapping) and not is_marker(spec) else spec
    if isinstance(name, str) and name in DATASETS:
        given = spec if isinstance(spec, Mapping) else {}
        known = {key: value for key, value in given.items() if not any(find_markers(value))}
        data = DataConfig.model_validate(known | {"name": name})
        data.dir = str(plan.data_dir) if plan.data_dir else data.dir
        without_test(data)


def _supervise(study: optuna.Study, plan: Plan, workers: int, told: Told) -> None:
    """Start workers and wait for them. They are no group of the terminal's, so that Ctrl-C reaches each once."""
    logs = [plan.out / f"worker-{number}.log" for number in range(1, workers + 1)]
    processes = [_start(plan, log) for log in logs]
    try:
        while any(process.poll() is None for process in processes):
            tell(study.get_trials(deepcopy=False), plan, told)
            time.sleep(_LOOK_EVERY)
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()
        raise
    if tell(study.get_trials(deepcopy=False), plan, told) < plan.trials:
        failed = [log for log, process in zip(logs, processes, strict=True) if process.returncode]
        if len(failed) == workers:
            last = (failed[0].read_text(encoding="utf-8").strip().splitlines() or ["it was killed"])[-1]
            raise UserError(f"every worker ended early; {failed[0]}: {last.removeprefix('error: ')}")


def _start(plan: Plan, log: Path) -> "subprocess.Popen[bytes]":
    with open(log, "wb") as file:
        process = subprocess.Popen(
            python("bpfree.lab.tune.worker", "main"),
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            start_new_session=True,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # one that ended at once is told of by its last words
        process.stdin.write(plan.model_dump_json().encode())
    return process
