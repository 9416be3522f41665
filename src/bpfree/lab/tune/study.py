"""A whole search: it starts the workers, waits for them, and writes the results."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import optuna
import yaml

from bpfree.data import DATASETS
from bpfree.disk.atomic import write_text
from bpfree.errors import UserError, check_positive
from bpfree.lab.jobs.fork_server import python
from bpfree.lab.jobs.launcher import LOCAL, Launcher
from bpfree.lab.tune.on_cluster import supervise_on_cluster
from bpfree.lab.tune.plan import Plan
from bpfree.lab.tune.results import Tuned, conclude
from bpfree.lab.tune.store import open_study
from bpfree.lab.tune.trial import without_test
from bpfree.lab.tune.worker import OnProgress, report, work
from bpfree.runs import folder
from bpfree.runs.data_config import DataConfig
from bpfree.runs.markers import find_markers, is_marker
from bpfree.training.allocator import without_caches

TEMPLATE = "tune.yaml"  # the config with its markers, as the user gave it
_LOOK_EVERY = 0.5  # seconds between two reports
_PATIENCE = 20  # seconds until a worker that did not hear Ctrl-C gets it again
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def search(
    plan: Plan,
    workers: int = 1,
    on_progress: OnProgress = lambda finished, best: None,
    launcher: Launcher = LOCAL,
) -> Tuned:
    """Carry out a plan, or continue it.

    Args:
        plan: the plan, from `make_plan`.
        workers: number of processes, each with one thread; with 1 and the launcher "local", this process trains.
        on_progress: called before each trial, or twice a second with several workers.
        launcher: starts the processes.

    Returns:
        The results, which are also in the plan's folder.

    Raises:
        UserError: the study holds another search, its database cannot be reached, or no trial finished.
        KeyboardInterrupt: the user pressed Ctrl-C; running trials are put back first.
    """
    check_positive("workers", workers)
    _refuse_missing_data(plan)
    folder.create(plan.out)
    with open_study(plan) as study:
        write_text(plan.out / TEMPLATE, yaml.safe_dump(plan.template(), sort_keys=False))
        if launcher.is_local and workers == 1:
            work(study, plan, on_progress=on_progress)
        elif report(study.get_trials(deepcopy=False), plan, on_progress) < plan.trials:
            if launcher.is_local:
                _supervise(study, plan, workers, on_progress)
            else:
                supervise_on_cluster(study, plan, workers, launcher, on_progress)
        report(study.get_trials(deepcopy=False), plan, on_progress)
        return conclude(study, plan)


def _refuse_missing_data(plan: Plan) -> None:
    """Raise UserError if a data set is not there: now, and not again in every trial."""
    spec = plan.values.get("data") or {}
    name = spec.get("name", "digits") if isinstance(spec, Mapping) and not is_marker(spec) else spec
    if isinstance(name, str) and name in DATASETS:
        options = spec if isinstance(spec, Mapping) else {}
        fixed = {key: value for key, value in options.items() if not any(find_markers(value))}
        data = DataConfig.model_validate(fixed | {"name": name})
        data.dir = str(plan.data_dir) if plan.data_dir else data.dir
        without_test(data)


def _supervise(study: optuna.Study, plan: Plan, workers: int, on_progress: OnProgress) -> None:
    """Start workers and wait for them.

    The workers are not in the terminal's process group: otherwise Ctrl-C would reach them twice, from the terminal and
    from here, and the second would interrupt the first one's cleaning up.
    """
    logs = [plan.out / f"worker-{number}.log" for number in range(1, workers + 1)]
    processes = [_start(plan, log) for log in logs]
    try:
        while any(process.poll() is None for process in processes):
            report(study.get_trials(deepcopy=False), plan, on_progress)
            time.sleep(_LOOK_EVERY)
    except BaseException:
        _interrupt(processes)
        raise
    if report(study.get_trials(deepcopy=False), plan, on_progress) < plan.trials:
        failed = [log for log, process in zip(logs, processes, strict=True) if process.returncode]
        # One failed worker is not an error, because the others take its trials.
        if len(failed) == workers:
            last = (failed[0].read_text(encoding="utf-8").strip().splitlines() or ["it was killed"])[-1]
            raise UserError(f"every worker ended early; {failed[0]}: {last.removeprefix('error: ')}")


def _interrupt(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Send Ctrl-C to workers, and wait until they have put their trials back."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        while process.poll() is None:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:  # libraries may swallow an exception that is raised in their callbacks
                process.send_signal(signal.SIGINT)


def _start(plan: Plan, log: Path) -> "subprocess.Popen[bytes]":
    with open(log, "wb") as file:
        process = subprocess.Popen(
            python("bpfree.lab.tune.worker", "main"),
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **dict.fromkeys(_THREADS, "1"), **without_caches()},
            start_new_session=True,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # of a worker that ended at once, the log tells more
        # Not as an argument: all users of the machine can see arguments, and the URL of the database may have a
        # password.
        process.stdin.write(plan.model_dump_json().encode())
    return process
