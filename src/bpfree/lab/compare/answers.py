"""Find which test samples each run has right, so that all statistics can be computed from compare.json alone."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bpfree.data.split import Split
from bpfree.disk.plain import read_json
from bpfree.errors import UserError
from bpfree.lab.statistics import pack, unpack
from bpfree.runs.run import Run as Trained

Run = dict[str, Any]
"""A run of a row of compare.json."""
RECORD = "compare.json"
_KEYS = ("samples", "right")


def add_answers(
    runs: Sequence[Run], test: Callable[[], Split | None], root: Path, load_run: Callable[[Path], Trained]
) -> None:
    """Add to each run which test samples it has right, as `samples` and `right`.

    `samples` is the number of test samples N, and `right` is the text of `bpfree.lab.statistics.pack`. Both are None
    for runs that have no accuracy on a test split, and for data with several labels for each sample, because the
    answers to them are not independent. Answers that compare.json in the folder has are not computed again.

    Args:
        runs: runs of rows of compare.json, which are changed.
        test: loads the test split; it is called if answers are missing.
        root: the folder of the comparison.
        load_run: loads the run in a folder.
    """
    known = _known(root)
    for run in runs:
        old = known.get(run["folder"], {})
        # All numbers of a run, such as its seconds, are those of the record only if it was not trained again since.
        same = json.loads(json.dumps(run)) == {key: value for key, value in old.items() if key not in _KEYS}
        run |= {key: old.get(key) if same else None for key in _KEYS}
    waiting = [run for run in runs if run["right"] is None and run["metric"] == "accuracy" and run["split"] == "test"]
    split = test() if waiting else None
    if split is None or split.y.dim() != 1:
        return
    with _one_thread():
        for run in waiting:
            right = load_run(root / run["folder"]).predict(split.x) == split.y
            run |= {"samples": len(right), "right": pack(right.numpy())}


def answers(run: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Return which test samples a run has right, bool [N]; None if the run does not say so.

    Args:
        run: a run of a row of compare.json.

    Raises:
        UserError: the bits are damaged.
    """
    return None if run.get("right") is None else unpack(run["right"], run["samples"])


def _known(root: Path) -> dict[str, Run]:
    """Return the runs with answers in the record of the folder, by their folders; none if it cannot be read."""
    try:
        groups = read_json(root / RECORD)["groups"]
        runs = [run for group in groups for row in group["rows"] for run in row["runs"]]
        return {run["folder"]: run for run in runs if answers(run) is not None}
    except (FileNotFoundError, UserError, KeyError, TypeError, AttributeError):
        return {}  # a record of another version is written again, and its answers are computed again


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as in training, and without warnings.

    While other processes use the cores, two threads can be many times slower than one: each waits for the other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the logs of the runs have the same warnings
            yield
    finally:
        torch.set_num_threads(threads)
