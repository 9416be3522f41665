"""The folder of a run: config.yaml, metrics.jsonl, result.json, last.ckpt, best.ckpt, events for TensorBoard, plots."""

import json
import os
import tempfile
from operator import itemgetter
from pathlib import Path
from typing import Any

from bpfree.disk.atomic import refuse_to_replace, write_text
from bpfree.disk.paths import refuse_system_folder, user_path
from bpfree.disk.plain import read_yaml
from bpfree.errors import UserError
from bpfree.mesh.job import note, noted
from bpfree.runs import saved
from bpfree.runs.lock import FolderLock
from bpfree.training.progress import Progress

CONFIG, METRICS, RESULT, LAST, BEST = "config.yaml", "metrics.jsonl", "result.json", "last.ckpt", "best.ckpt"
PLOTS = "plots"


def write_metrics(path: Path, progress: Progress, *, stopped: str = "") -> None:
    """Write metrics.jsonl: the records of trackers and of epochs, in the order of their steps.

    Args:
        path: the run folder.
        progress: holds the records.
        stopped: why the training ended before it was over; a resume writes the file anew without it. Default: what
            early stopping or a tracker gave as the reason.

    Raises:
        UserError: the file cannot be written.
    """
    # The sort is stable and trackers come first: the last step of an epoch is measured before the epoch is over.
    records = sorted([*progress.tracked, *progress.history], key=itemgetter("step"))
    if why := stopped or progress.why_stopped:
        records.append({"kind": "stopped", "step": progress.step, "why": why})
    write_text(path / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def place(out: str | Path) -> Path:
    """Return the path of a new run's folder. Nothing is made yet.

    Args:
        out: the path as the user gave it; `~` is the home folder.

    Raises:
        UserError: `out` cannot be a path, or is the root of a disk or the home folder.
    """
    path = user_path(out, "out")
    refuse_system_folder(path, "out")
    return path


def take(path: Path, *, new: bool) -> FolderLock:
    """Take the lock of a run folder, to write a run into it.

    Args:
        path: the run folder; the folder of a new run is made.
        new: True if the folder must not hold a run yet; False if it must hold one.

    Returns:
        The lock. The caller releases it.

    Raises:
        UserError: the folder cannot be written, another process writes to it, it holds another run, or a link lies
            where a file of the run is to be.
    """
    if new:
        create(path)
    lock = FolderLock(path)
    try:
        if new:
            refuse_a_run(path)  # again, now under the lock: another process may have begun a run since `create` looked
        refuse_links(path)
    except UserError:
        lock.release()
        raise
    return lock


def goes_on(path: Path, *, resume: bool = False) -> bool:
    """Return True if a training goes on with the run in a folder, and False if it begins a new one there.

    It goes on with a run that the same call of torchrun began: one of its processes had died, and torchrun has started
    all of them again.

    Args:
        path: the run folder, which need not exist.
        resume: True to go on with any run there.
    """
    key = f"begun {path.absolute()}"
    is_run = os.path.exists(path / CONFIG)  # noqa: PTH110 - False for a name that is too long
    if is_run and (resume or noted(key) is not None):
        return True
    if not is_run:  # a run that was there before is not one to go on with after a restart, but an error again
        note(key, "")
    return False


def create(path: Path) -> None:
    """Make the folder of a new run.

    Args:
        path: the new folder; missing parents are made too.

    Raises:
        UserError: the folder cannot be written, or holds another run.
    """
    refuse_system_folder(path, "out")
    try:
        refuse_a_run(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"out: {path} is a file, allowed: a folder, or nothing there")
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell for root, read-only disks and quotas; a file that is really made does.
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, UserError):
            raise
        raise UserError(f"out: {path} cannot be written ({getattr(error, 'strerror', None) or error})") from error


def refuse_a_run(path: Path) -> None:
    """Raise UserError if the folder holds a run."""
    if (path / CONFIG).exists() or (path / METRICS).exists():
        raise UserError(f"out: {path} holds another run. Choose another folder, or go on with --resume {path}")


def refuse_links(path: Path) -> None:
    """Refuse to write a run through links, which somebody else may have put into the folder.

    Args:
        path: the run folder.

    Raises:
        UserError: a link, a device or a pipe lies where a file or folder of a run is to be.
    """
    for name in (CONFIG, METRICS, RESULT):
        refuse_to_replace(path / name)
    for name in (LAST, BEST, PLOTS):
        refuse_to_replace(path / name, folder=True)


def read_config(path: Path) -> dict[str, Any]:
    """Return the sections of a run's config.yaml as plain values, not checked yet.

    Args:
        path: the run folder.

    Raises:
        UserError: the folder does not hold a run, or its config is not YAML.
    """
    try:
        values = read_yaml(path / CONFIG)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a UserError
        raise UserError(f"run: {path} is not a run folder: no readable {CONFIG} in it ({_reason(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"run: {path / CONFIG} is damaged: it holds no sections (data, net, rule, ...)")
    return values


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_result(path: Path) -> dict[str, Any] | None:
    """Return the values of a run's result.json, or None if the run is not over.

    Args:
        path: the run folder.

    Raises:
        UserError: the file is damaged.
    """
    try:
        # Opened without a look before: a file that was there may be gone a moment later.
        return saved.read_result(path / RESULT)
    except FileNotFoundError:
        return None
