"""Train the runs of a comparison that are not finished, and write its record and its report."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Unpack

import torch

from bpfree._version import __version__
from bpfree.data import Split
from bpfree.disk.atomic import write_text
from bpfree.disk.paths import user_path
from bpfree.errors import UserError, check_positive
from bpfree.lab.compare.answers import RECORD, add_answers
from bpfree.lab.compare.entries import Entry, Group
from bpfree.lab.compare.export import export
from bpfree.lab.compare.measure import (
    Row,
    compare_with_baselines,
    default_target,
    measure_entry,
    portable,
    time_to_target,
)
from bpfree.lab.compare.own import NetChoice, Own, OwnOptions, refuse_other_objects
from bpfree.lab.compare.page import write_comparison
from bpfree.lab.compare.plan import plan, plan_rules
from bpfree.lab.compare.recipes import RuleChoice
from bpfree.lab.jobs.cluster import cluster
from bpfree.lab.jobs.here import run_here
from bpfree.lab.jobs.jobs import Job, Objects, OnProgress, run_jobs
from bpfree.lab.jobs.launcher import Launcher
from bpfree.lab.jobs.machine import cores, jobs_at_once, processor
from bpfree.lab.jobs.on_cluster import run_on_cluster
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

    def export(self, folder: str | Path) -> list[Path]:
        """Write files for a paper: results.csv, results.tex, and each figure as PDF and SVG.

        Args:
            folder: gets the files; it is made.

        Returns:
            The paths of the files.

        Raises:
            UserError: a file cannot be written.
        """
        return export(self.record, user_path(folder, "folder"))


def compare(
    configs: str | Sequence[str] | NetChoice,
    data: Any = None,
    *,
    rules: Sequence[RuleChoice] = (),
    seeds: int = 3,
    out: str | Path | None = None,
    jobs: int | None = None,
    target: float | None = None,
    overrides: Sequence[str] = (),
    controls: bool = True,
    command: str | None = None,
    launcher: str = "local",
    slurm: Mapping[str, Any] | Sequence[str] | None = None,
    verbose: bool | None = None,
    **options: Unpack[OwnOptions],
) -> Comparison:
    """Train rules and backprop on the same net, data and epochs, and write a report that compares them.

    Without `data`, configs name net and data. With `data`, the first argument is the net. Finished runs in the folder
    are not trained again, and interrupted runs go on.

    Args:
        configs: YAML files or names of shipped configs; configs with the same data, net and epochs share a table. With
            `data`: a function that makes a new net, such as the class of the net, a module, or the name or spec of a
            net. The weights of a module are drawn anew for each seed; see docs/compare.md.
        data: training data as `bpfree.fit` takes them.
        rules: names or specs of rules, or functions that make one; "all" for every rule; () to train each config as it
            is. See `bpfree.lab.compare.plan.plan`.
        seeds: the number of runs of each rule; their seeds count up from the seed of the config.
        out: the folder of the comparison; default: runs/compare-<first config>, or runs/compare-<net>-<data>.
        jobs: the number of runs at the same time, each with one thread; default: one for each core, or one with a GPU.
            Objects from Python train in this process, one after the other. Jobs of Slurm have no limit by default.
        target: a value of the validation metric; the report shows the CPU seconds until it is reached. Default: 95 %
            of backprop's best.
        overrides: changes `section.key=value` of every config.
        controls: False to train plain backprop alone beside the rules, without its forms that save memory and without
            control experiments; see `bpfree.lab.compare.controls`.
        command: the command line that repeats the comparison, for the report.
        launcher: "local" starts processes on this machine, "slurm" makes each run a job of a cluster, and "submitit"
            starts processes as submitit does without a cluster; see docs/compare.md.
        slurm: options of Slurm, such as {"partition": "gpu", "time": 60}.
        verbose: True: show a bar at a terminal or in a notebook, and elsewhere a line when a run begins or ends. False:
            show nothing. None: show only a bar.
        options: with `data`: further arguments of `bpfree.fit` (epochs, optimizer, test, task, loss, batch_size, ...).
            A rule that has a shipped config for a named data set takes its optimizer and schedule from there.

    Returns:
        The record and the path of the report. A rule that fails does not stop the others; see `Comparison.failed`.

    Raises:
        UserError: a name is unknown, an argument is not allowed, or the folder holds the runs of another comparison.
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
    starts = Launcher.of(launcher, slurm)
    if data is None:
        own, names = None, _names(configs, options)
        groups = plan(names, rules, overrides, controls=controls)
        name = names[0].replace("/", "-").removesuffix(".yaml")
    else:
        own = _own(configs, data, rules, overrides, options)
        groups = [plan_rules(own.name, own.recipes, rules, controls=controls)]
        name = own.name
    root = place(out) if out is not None else Path("runs") / f"compare-{name}"
    refuse_other_objects(root, [entry for group in groups for entry in group.entries], own)
    planned = {
        g.name: {e.name: _jobs(g, e, seeds, root, own, alone=len(groups) == 1) for e in g.entries} for g in groups
    }
    with RunsBar(verbose) as bar:
        failed = _train(planned, root, jobs, starts, bar)
    record = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": _machine(starts),
        "groups": [_measure_group(group, planned[group.name], failed, root, target) for group in groups],
    }
    write_text(root / RECORD, json.dumps(record, indent=1) + "\n")
    write_comparison(record, root / PAGE)
    asked = {job.name for g in groups for e in g.entries if not e.added for job in planned[g.name][e.name]}
    return Comparison(root, record, {name: error for name, error in failed.items() if name in asked})


def _names(configs: Any, options: Mapping[str, Any]) -> list[str]:
    """Return the names of configs as a list; raise UserError for a net or another object, and for options of a net."""
    names = [configs] if isinstance(configs, str) else configs
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"configs: found {type(configs).__name__}, allowed: names of configs or YAML files. A net of your own "
            "needs its data: bpfree.compare(MyNet, (x, y), rules=[...])"
        )
    if options:
        key = next(iter(options))
        raise UserError(f"{key}: allowed with a net and data only. For a config, write overrides=['section.key=value']")
    return list(names)


def _own(configs: Any, data: Any, rules: Sequence[RuleChoice], overrides: Sequence[str], options: Any) -> Own:
    """Return the net and the data of a user; raise UserError for arguments that belong to configs."""
    if overrides:
        raise UserError("overrides: allowed with configs only. With data, pass arguments of bpfree.fit: epochs=5")
    if not rules:
        raise UserError("rules: found none, allowed: one or more rules to compare, such as ['dfa', 'mono_forward']")
    return Own.of(configs, data, options)


def _train(
    planned: Mapping[str, Mapping[str, Sequence[Job]]],
    root: Path,
    at_once: int | None,
    launcher: Launcher,
    on_progress: OnProgress,
) -> dict[str, str]:
    """Train all jobs that are not over, and return the error of each job that failed, by its name.

    Args:
        planned: the jobs of each entry by its name, by the name of the group.
        root: the folder of the comparison.
        at_once: the number of jobs at the same time, or None.
        launcher: starts the processes.
        on_progress: called whenever a job begins or ends.
    """
    # A refused entry has no jobs, and the strict `zip` below would raise an error for its empty list.
    rows = [[row for row in entries.values() if row] for entries in planned.values()]
    # Seed by seed, so that a comparison that is stopped early has all rules with the first seeds.
    every = [job for group in rows for of_a_seed in zip(*group, strict=True) for job in of_a_seed]
    if not any(job.objects for job in every):
        if launcher.is_local:
            return run_jobs(every, at_once or jobs_at_once(), on_progress)
        limit = at_once if launcher.name == "slurm" else at_once or jobs_at_once()
        with cluster(launcher, root, limit) as jobs:
            return run_on_cluster(every, jobs, on_progress)
    if not launcher.is_local:
        raise UserError(
            f"launcher: found {launcher.name}, allowed: local, since nets, rules and data from Python train in this "
            "process"
        )
    if at_once not in (None, 1):
        raise UserError(
            f"jobs: found {at_once}, allowed: 1, since nets, rules and data from Python train in this process"
        )
    return run_here(every, on_progress)


def _jobs(group: Group, entry: Entry, seeds: int, root: Path, own: Own | None, *, alone: bool) -> list[Job]:
    """Return a job for each seed of an entry, or no job if the entry is refused.

    Args:
        group: the group of the entry.
        entry: the entry.
        seeds: the number of seeds.
        root: the folder of the comparison.
        own: the net and the data, if they are not those of a config.
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
        objects = Objects(make_rule=entry.make_rule) if own is None else own.objects(entry, config.train.seed)
        jobs.append(Job(name if alone else f"{group.name}: {name}", config, place / _file_name(name), objects))
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
    every = {job.folder: job for of_entry in jobs.values() for job in of_entry}
    dataset = next(iter(every.values())).objects.dataset

    def test() -> Split | None:
        return (group.config.data.load() if dataset is None else group.config.data.select(dataset)).test

    runs = [run for row in trained for run in row["runs"]]
    add_answers(runs, test, root, lambda folder: every[folder].load())
    baseline = compare_with_baselines(rows)
    # Without backprop (on nets that it cannot train), the best rule gives the target.
    aim = default_target(baseline or max(trained, key=_goodness)) if target is None else target
    time_to_target(trained, aim, trained[0]["metric"])
    return measured | {"target": aim, "baseline": None if baseline is None else baseline["name"]}


def _goodness(row: Row) -> float:
    """Return the mean score of a row, with its sign changed for a loss: larger is better."""
    mean: float = row["mean"]
    return -mean if row["metric"] == "loss" else mean


def _machine(launcher: Launcher) -> dict[str, str]:
    """Return the machine and the versions for the record."""
    elsewhere = {"runs": "jobs of Slurm on machines that may differ from this one"} if launcher.name == "slurm" else {}
    return elsewhere | {
        "processor": processor(),
        "cores": str(cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bpfree": __version__,
    }
