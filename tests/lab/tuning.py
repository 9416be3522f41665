"""What the tests of searches share: a small config, real processes, and kills in the middle of a trial."""

import json
import signal
import time
from collections import Counter

import optuna
import yaml
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tests.test_cli import shell

TINY = {
    "data": {"name": "digits", "batch_size": 128},
    "net": {"name": "mlp", "hidden": [16], "activation": "tanh"},
    "rule": "dfa",
    "optimizer": {"name": "adam", "lr": {"search": "log", "low": "1e-4", "high": "1e-1"}},
    "train": {"epochs": 2},
}
RULES = {"search": "choice", "values": ["dfa", "drtp", {"name": "fa", "feedback": "orthogonal"}]}


def tiny(**sections):
    return {**TINY, **sections}


def study_file(out):
    return json.loads((out / "study.json").read_text())


def states(out):
    return Counter(trial["state"] for trial in study_file(out)["trials"])


def in_database(out):
    url = f"sqlite:///{out / 'study.db'}"
    options = {"connect_args": {"timeout": 1}, "poolclass": NullPool}  # so that no connection stays open
    return optuna.load_study(study_name=out.name, storage=RDBStorage(url, options))


def retrained(out, tmp_path):
    """The metrics that the best config trains to by the ordinary command."""
    assert shell("train", out / "best.yaml", "--out", tmp_path / "again").exit_code == 0
    return json.loads((tmp_path / "again" / "result.json").read_text())


def config_file(folder, **sections):
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tiny(**sections)))
    return path


def its_running_trial(study, pid):
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next((t for t in running if t.user_attrs.get("worker", "").endswith(f":{pid}") and t.params), None)


def kill_9_within_a_trial(study, process):
    """The trial that the process was at."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            trial = its_running_trial(study, process.pid)
        except (StorageInternalError, SQLAlchemyError):  # it was stopped while it was writing
            trial = None
        if trial is not None:
            process.kill()
            return trial
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
