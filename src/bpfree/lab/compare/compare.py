"""Run a comparison, or what is left of it, and put what came of it into one record and one page."""

import json
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bpfree._version import __version__
from bpfree.disk.atomic import write_text
from bpfree.errors import UserError, check_positive
from bpfree.lab.compare.measure import (
    Row,
    compare_samples,
    compare_with_baseline,
    default_target,
    measure_entry,
    portable,
    time_to_target,
)
from bpfree.lab.compare.page import write_comparison
from bpfree.lab.compare.plan import BASELINE, Entry, Group, plan
from bpfree.lab.jobs.jobs import Job, OnProgress, run_jobs
from bpfree.lab.jobs.machine import cores, jobs_at_once, processor
from bpfree.runs.folder import place

RECORD, PAGE, RUNS = "compare.json", "report.html", "runs"


@dataclass
class Comparison:
    """What came of a comparison.

    Attributes:
        folder: where it is.
        record: as in compare.json.
        failed: what went wrong, by the run's name; baselines that cannot train the net do not count.
    """

    folder: Path
    record: dict[str, Any]
    failed: dict[str, str]

    @property
    def page(self) -> Path:
        """The HTML report."""
        return self.folder / PAGE


def compare(
    configs: str | Sequence[str],
    *,
    rules: Sequence[str] = (),
    seeds: int = 3,
    out: str | Path | None = None,
    jobs: int | None = None,
    target: float | None = None,
    overrides: Sequence[str] = (),
    command: str | None = None,
    on_progress: OnProgress = lambda running, done, total: None,
) -> Comparison:
    """Train rules on the same net, data and epochs, with backprop beside them, and report.

    Runs that are there already are not run again, and interrupted ones go on.

    Args:
        configs: YAML files or shipped configs; those that share data, net and epochs are compared with each other.
        rules: on each config's net and data; see `bpfree.lab.compare.plan.plan`. None: each config as it is.
        seeds: of each, counted from the config's.
        out: the folder; default: runs/compare-<first config>.
        jobs: processes at a time, of one thread each; default: as many as there are cores, or one with a GPU.
        target: seconds are told until the validation metric has come so far; default: 95 % of backprop's best.
        overrides: `section.key=value`, of every config.
        command: that leads here, for the report.
        on_progress: called whenever a run begins or ends; see `bpfree.lab.jobs.jobs.OnProgress`.

    Raises:
        UserError: an unknown name, an object in place of a name, or a folder with another comparison's runs.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    check_positive("seeds", seeds)
    if jobs is not None:
        check_positive("jobs", jobs)
    names = [configs] if isinstance(configs, str) else _names(configs)
    groups = plan(names, rules, overrides)
    root = (
        place(out) if out is not None else Path("runs") / f"compare-{names[0].replace('/', '-').removesuffix('.yaml')}"
    )
    planned = {g.name: {e.name: _jobs(g, e, seeds, root, alone=len(groups) == 1) for e in g.entries} for g in groups}
    rows = [[row for row in entries.values() if row] for entries in planned.values()]
    every = [job for group in rows for of_a_seed in zip(*group, strict=True) for job in of_a_seed]
    failed = run_jobs(every, jobs or jobs_at_once(), on_progress)
    record = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": _machine(),
        "groups": [_measure_group(group, planned[group.name], failed, root, target) for group in groups],
    }
    write_text(root / RECORD, json.dumps(record, indent=1) + "\n")
    write_comparison(record, root / PAGE)
    return Comparison(root, record, _worth_telling(failed))


def _names(configs: Sequence[str]) -> list[str]:
    """The names in a sequence of them."""
    if not isinstance(configs, list | tuple) or not all(isinstance(name, str) for name in configs):
        raise UserError(
            f"configs: found {type(configs).__name__}, allowed: names of configs or YAML files. A net of your own is "
            "compared by the name of its class: overrides=['net={name: \"my_module:MyNet\"}']"
        )
    return list(configs)


def _jobs(group: Group, entry: Entry, seeds: int, root: Path, *, alone: bool) -> list[Job]:
    """One for each seed; none for what is refused."""
    made: list[Job] = []
    if entry.refused:
        return made
    for n in range(seeds):
        config = deepcopy(entry.config)
        config.train.seed += n
        name = f"{entry.name} seed {config.train.seed}"
        place = root / RUNS if alone else root / RUNS / _file_name(group.name)
        made.append(Job(name if alone else f"{group.name}: {name}", config, place / _file_name(name)))
    return made


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.replace(", ", "-").replace(" seed ", "-"))


def _measure_group(
    group: Group, jobs: Mapping[str, Sequence[Job]], failed: Mapping[str, str], root: Path, target: float | None
) -> dict[str, Any]:
    rows = [measure_entry(entry, jobs[entry.name], failed, root) for entry in group.entries]
    baseline = compare_with_baseline(rows)
    measured: dict[str, Any] = {"name": group.name, "config": portable(group.config), "rows": rows}
    trained: list[Row] = [row for row in rows if row["runs"]]
    if not trained:
        return measured
    aim = default_target(baseline or max(trained, key=lambda row: _goodness(row))) if target is None else target
    time_to_target(trained, aim, trained[0]["metric"])
    if baseline is not None:
        test = group.config.data.load().test
        if test is not None:
            with _one_thread():
                compare_samples(trained, baseline, test, root)
    return measured | {"target": aim, "baseline": None if baseline is None else baseline["name"]}


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in training; where cores are busy, two threads can be many times as slow as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the logs of the runs have them
            yield
    finally:
        torch.set_num_threads(threads)


def _goodness(row: Row) -> float:
    mean: float = row["mean"]
    return -mean if row["metric"] == "loss" else mean


def _worth_telling(failed: Mapping[str, str]) -> dict[str, str]:
    return {name: error for name, error in failed.items() if BASELINE not in name}


def _machine() -> dict[str, str]:
    return {
        "processor": processor(),
        "cores": str(cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bpfree": __version__,
    }
