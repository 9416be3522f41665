"""Train the runs of a comparison that are not finished, and write its record and its report."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bpfree._version import __version__
from bpfree.disk.atomic import write_text
from bpfree.errors import UserError, check_positive
from bpfree.lab.compare.answers import RECORD, add_answers
from bpfree.lab.compare.entries import Entry, Group
from bpfree.lab.compare.measure import (
    Row,
    compare_with_baselines,
    default_target,
    measure_entry,
    portable,
    time_to_target,
)
from bpfree.lab.compare.page import write_comparison
from bpfree.lab.compare.plan import plan
from bpfree.lab.jobs.jobs import Job, run_jobs
from bpfree.lab.jobs.machine import cores, jobs_at_once, processor
from bpfree.lab.jobs.runs_bar import RunsBar
from bpfree.runs.folder import place

PAGE, RUNS = "report.html", "runs"  # in the folder of a comparison


@dataclass
class Comparison:
    """The result of a comparison.

    Attributes:
        folder: the folder of the comparison.
        record: the values of compare.json: command, date, machine and groups with their rows.
        failed: the error of each run that failed, by the run's name. Baselines and controls that cannot train the net
            are left out unless the user asked for them: that they cannot is a result, and not a failure.
    """

    folder: Path
    record: dict[str, Any]
    failed: dict[str, str]

    @property
    def page(self) -> Path:
        """The path of the HTML report."""
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
    controls: bool = True,
    command: str | None = None,
    verbose: bool | None = None,
) -> Comparison:
    """Train rules and backprop on the same net, data and epochs, and write a report that compares them.

    Finished runs in the folder are not trained again, and interrupted runs go on.

    Args:
        configs: YAML files or names of shipped configs; configs with the same data, net and epochs share a table.
        rules: names of rules to train on the net and data of each config; "all" for every rule; () to train each
            config as it is. See `bpfree.lab.compare.plan.plan`.
        seeds: the number of runs of each rule; their seeds count up from the seed of the config.
        out: the folder of the comparison; default: runs/compare-<first config>.
        jobs: the number of runs at the same time, each with one thread; default: one for each core, or one with a GPU.
        target: a value of the validation metric; the report shows the CPU seconds until it is reached. Default: 95 %
            of backprop's best.
        overrides: changes `section.key=value` of every config.
        controls: False to leave out the control experiments; see `bpfree.lab.compare.controls`.
        command: the command line that repeats the comparison, for the report.
        verbose: True: show a bar at a terminal or in a notebook, and elsewhere a line when a run begins or ends. False:
            show nothing. None: show only a bar.

    Returns:
        The record and the path of the report. A rule that fails does not stop the others; see `Comparison.failed`.

    Raises:
        UserError: a name is unknown, an argument is an object and not a name, or the folder holds the runs of another
            comparison.
        KeyboardInterrupt: Ctrl-C was pressed; the same call goes on.

    Example:
        >>> import bpfree
        >>> bpfree.compare("digits/mlp", rules=["dfa"], seeds=0)
        Traceback (most recent call last):
        ...
        bpfree.errors.UserError: seeds: found 0, allowed: a number above 0
    """
    check_positive("seeds", seeds)
    if jobs is not None:
        check_positive("jobs", jobs)
    names = [configs] if isinstance(configs, str) else _names(configs)
    groups = plan(names, rules, overrides, controls=controls)
    root = (
        place(out) if out is not None else Path("runs") / f"compare-{names[0].replace('/', '-').removesuffix('.yaml')}"
    )
    planned = {g.name: {e.name: _jobs(g, e, seeds, root, alone=len(groups) == 1) for e in g.entries} for g in groups}
    # A refused entry has no jobs, and the strict `zip` below would raise an error for its empty list.
    rows = [[row for row in entries.values() if row] for entries in planned.values()]
    # Seed by seed, so that a comparison that is stopped early has all rules with the first seeds.
    every = [job for group in rows for of_a_seed in zip(*group, strict=True) for job in of_a_seed]
    with RunsBar(verbose) as bar:
        failed = run_jobs(every, jobs or jobs_at_once(), bar)
    record = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": _machine(),
        "groups": [_measure_group(group, planned[group.name], failed, root, target) for group in groups],
    }
    write_text(root / RECORD, json.dumps(record, indent=1) + "\n")
    write_comparison(record, root / PAGE)
    asked = {job.name for g in groups for e in g.entries if not e.added for job in planned[g.name][e.name]}
    return Comparison(root, record, {name: error for name, error in failed.items() if name in asked})


def _names(configs: Sequence[str]) -> list[str]:
    """Return the names as a list; raise UserError for a net or another object."""
    if not isinstance(configs, list | tuple) or not all(isinstance(name, str) for name in configs):
        raise UserError(
            f"configs: found {type(configs).__name__}, allowed: names of configs or YAML files. Name the class of "
            "your own net: overrides=['net={name: \"my_module:MyNet\"}']"
        )
    return list(configs)


def _jobs(group: Group, entry: Entry, seeds: int, root: Path, *, alone: bool) -> list[Job]:
    """Return a job for each seed of an entry, or no job if the entry is refused.

    Args:
        group: the group of the entry.
        entry: the entry.
        seeds: the number of seeds.
        root: the folder of the comparison.
        alone: True if the comparison has only this group; then names and folders do not contain its name.
    """
    jobs: list[Job] = []
    if entry.refused:
        return jobs
    for n in range(seeds):
        config = deepcopy(entry.config)  # the entry keeps the config of the first seed
        config.train.seed += n
        name = f"{entry.name} seed {config.train.seed}"
        place = root / RUNS if alone else root / RUNS / _file_name(group.name)
        jobs.append(Job(name if alone else f"{group.name}: {name}", config, place / _file_name(name)))
    return jobs


def _file_name(name: str) -> str:
    """Return the name of a run as a file name: "backprop, checkpointed seed 0" becomes "backprop-checkpointed-0"."""
    return re.sub(r"[^\w.]+", "-", name.replace(" seed ", "-"))


def _measure_group(
    group: Group, jobs: Mapping[str, Sequence[Job]], failed: Mapping[str, str], root: Path, target: float | None
) -> dict[str, Any]:
    """Return the record of a group: its rows, differences from backprop on the same net, tests and times.

    Args:
        group: the planned group.
        jobs: the jobs of each entry, by its name.
        failed: the error of each job that failed, by the job's name.
        root: the folder of the comparison.
        target: the target that the user gave; None for 95 % of the best of backprop on the group's net.
    """
    rows = [measure_entry(entry, jobs[entry.name], failed, root) for entry in group.entries]
    measured: dict[str, Any] = {"name": group.name, "config": portable(group.config), "rows": rows}
    trained: list[Row] = [row for row in rows if row["runs"]]
    if not trained:
        return measured
    add_answers([run for row in trained for run in row["runs"]], lambda: group.config.data.load().test, root)
    baseline = compare_with_baselines(rows)
    # Without backprop (a net of denoising blocks alone), the best rule gives the target.
    aim = default_target(baseline or max(trained, key=lambda row: _goodness(row))) if target is None else target
    time_to_target(trained, aim, trained[0]["metric"])
    return measured | {"target": aim, "baseline": None if baseline is None else baseline["name"]}


def _goodness(row: Row) -> float:
    """Return the mean score of a row, with its sign changed for a loss: larger is better."""
    mean: float = row["mean"]
    return -mean if row["metric"] == "loss" else mean


def _machine() -> dict[str, str]:
    """Return the machine and the versions for the record."""
    return {
        "processor": processor(),
        "cores": str(cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bpfree": __version__,
    }
