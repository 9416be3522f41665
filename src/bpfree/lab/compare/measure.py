"""The results of a comparison: means, differences from the baseline of the same net, and times to a target."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.errors import UserError
from bpfree.lab.compare.answers import answers
from bpfree.lab.compare.entries import Entry
from bpfree.lab.jobs.jobs import Job
from bpfree.lab.report.records import read_run
from bpfree.lab.statistics import holm, paired_difference, verdict
from bpfree.runs import folder
from bpfree.runs.config import Config

Row = dict[str, Any]
"""A row of compare.json: an entry with its runs, means and differences."""

# Runs of earlier versions do not have them.
_NEWER_COSTS = ("queries", "energy_joules", "memory_growth_bytes", "net_flops", "head_flops")
_COSTS = ("cpu_seconds", "wall_seconds", "step_memory_bytes", "peak_memory_bytes", "parameters", "rule_parameters")


def measure_entry(entry: Entry, jobs: Sequence[Job], failed: Mapping[str, str], root: Path) -> Row:
    """Return the row of an entry: its runs, one for each seed, and their means.

    Args:
        entry: the planned entry.
        jobs: its jobs, including those that failed.
        failed: the error of each job that failed, by the job's name.
        root: the folder of the comparison; paths in the row are relative to it.

    Raises:
        UserError: a run folder is damaged.
    """
    runs = [_measured(job, root) for job in jobs if job.name not in failed]
    config = portable(entry.config)
    rule = entry.name if entry.refused else config["rule"]["name"]
    row: Row = {"name": entry.name, "rule": rule, "notes": entry.notes, "config": config, "runs": runs}
    row |= {"net": entry.net, "kind": entry.kind, "baseline": entry.baseline}
    # Most errors are the same for all seeds, and the report shows each of them once.
    errors = list(dict.fromkeys(failed[job.name] for job in jobs if job.name in failed))
    errors = [entry.refused] if entry.refused else errors
    if errors:
        row["errors"] = errors
    if runs:
        scores = [run["score"] for run in runs]
        row |= {"metric": runs[0]["metric"], "mean": statistics.fmean(scores), "std": _std(scores)}
        row |= {cost: _mean(run[cost] for run in runs) for cost in (*_COSTS, *_NEWER_COSTS, "samples_per_second")}
    return row


def portable(config: Config) -> dict[str, Any]:
    """Return a config as plain values, without the folder of the data sets on this machine.

    Args:
        config: a complete config.
    """
    plain = config.plain()
    return plain | {"data": plain["data"] | {"dir": None}}


def _measured(job: Job, root: Path) -> Row:
    """Return the record of one run, or raise UserError if its files lack something."""
    try:
        return _measure_run(job, root)
    except (KeyError, TypeError, statistics.StatisticsError) as error:
        raise UserError(
            f"{job.folder}: damaged ({error}). Delete the folder; the same command trains the run again"
        ) from error


def _measure_run(job: Job, root: Path) -> Row:
    """Return the record of one run: its score, its learning curve and its costs."""
    result = folder.read_result(job.folder)
    if result is None:
        raise UserError(f"{job.folder}: found no {folder.RESULT}. The same command trains the run again")
    epochs = read_run(job.folder).history
    # Test first: early stopping and options may have been chosen by validation, so its score is too good.
    split = "test" if result["test"] else "validation" if result["validation"] else "train"
    metric = "accuracy" if "accuracy" in result[split] else "loss"
    watched = "validation" if epochs and epochs[-1]["validation"] else "train"
    return {
        "seed": job.config.train.seed,
        "folder": job.folder.relative_to(root).as_posix(),
        "metric": metric,
        "split": split,
        "score": result[split][metric],
        "test": result["test"],
        "watched": watched,
        # Epochs of older runs have wall seconds only.
        "curve": [[r["epoch"], r.get("cpu_seconds", r["seconds"]), r[watched][metric]] for r in epochs],
        # The median: the first epoch is slower, since memory is allocated and libraries are loaded in it.
        "samples_per_second": statistics.median(r["samples_per_second"] for r in epochs),
        "versions": result["versions"],
        **{cost: result[cost] for cost in _COSTS},
        **{cost: result.get(cost) for cost in _NEWER_COSTS},
    }


def compare_with_baselines(rows: Sequence[Row]) -> Row | None:
    """Add to each row its difference from its baseline, with a confidence interval and a verdict.

    A row whose baseline was trained keeps `baseline` (its name) and gets `difference` (the mean over the seeds that
    both have, in the unit of the metric), `seeds_compared`, `verdict` and, with enough seeds, `interval` ([low, high]
    at 95 %), `p` and `p_holm`, which is corrected for the number of such rows. With one seed it gets
    `interval_of_nets` instead, which compares two trained nets and not two rules. See
    `bpfree.lab.statistics.paired_difference`.

    Args:
        rows: rows of one group, which are changed. A row is compared with the row that its key `baseline` names.

    Returns:
        The baseline of the first row that has one; None if none was trained.
    """
    trained = [row for row in rows if row["runs"]]
    by_name = {row["name"]: row for row in trained}
    baselines = [by_name.get(row.pop("baseline", "")) for row in trained]
    for row, baseline in zip(trained, baselines, strict=True):
        if baseline is not None:
            row |= _difference(row, baseline)
    tested = [row for row in trained if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row in trained:
        if "difference" in row:
            row["verdict"] = verdict(row["difference"], row.get("p_holm"), is_loss=row["metric"] == "loss")
    return next((baseline for baseline in baselines if baseline is not None), None)


def _difference(row: Row, baseline: Row) -> Row:
    """Return the difference of a row from its baseline over the seeds that both have, as keys of the row."""
    theirs = {run["seed"]: run for run in baseline["runs"]}
    pairs = [(run, theirs[run["seed"]]) for run in row["runs"] if run["seed"] in theirs]
    if not pairs:
        return {}
    # Runs with one seed have the same initial weights and batches, so their difference varies less than their scores.
    bits = [[answers(run) for run in pair] for pair in pairs]
    known = all(a is not None and b is not None and len(a) == len(b) for a, b in bits)
    values: Any = bits if known else [[run["score"] for run in pair] for pair in pairs]
    rule, other = np.moveaxis(np.array(values), 1, 0)  # twice [S, N], or twice [S]
    found = paired_difference(rule, other)
    keys: Row = {"baseline": baseline["name"], "difference": found.mean, "seeds_compared": found.seeds}
    intervals = {"interval": found.interval, "interval_of_nets": found.nets}
    keys |= {key: list(interval) for key, interval in intervals.items() if interval is not None}
    return keys if found.p is None else keys | {"p": found.p}


def time_to_target(rows: Sequence[Row], target: float, metric: str) -> None:
    """Add to each row how many of its runs reached a target, and after how many CPU seconds.

    A row gets `reached_target`, and `seconds_to_target`, the mean over its runs, if all of them reached the target.

    Args:
        rows: rows of one group, which are changed.
        target: a value of the metric on the validation split, or on the training split of runs without validation.
        metric: "accuracy" or "loss"; a loss reaches the target from above.
    """
    for row in rows:
        reached = [_reached(run["curve"], target, metric) for run in row["runs"]]
        times = [seconds for seconds in reached if seconds is not None]
        row["reached_target"] = len(times)
        # The mean over the runs that reached the target alone would favour a rule that needs a lucky seed.
        if times and len(times) == len(reached):
            row["seconds_to_target"] = statistics.fmean(times)


def _reached(curve: Sequence[Sequence[float]], target: float, metric: str) -> float | None:
    """Return the CPU seconds at the first epoch whose value reaches the target; None if no epoch does."""
    for _, seconds, value in curve:
        if (value <= target) if metric == "loss" else (value >= target):
            return seconds
    return None


def default_target(baseline: Row) -> float:
    """Return 95 % of the best validation accuracy of a row, the mean over its seeds; its best loss divided by 0.95.

    Args:
        baseline: the row of backprop.
    """
    # The best epoch and not the last one: a net that overfits at the end did reach it.
    best = max if baseline["metric"] == "accuracy" else min
    reached = statistics.fmean(best(value for _, _, value in run["curve"]) for run in baseline["runs"])
    # A loss is divided, so that the target is easier than backprop's best for both metrics.
    return 0.95 * reached if baseline["metric"] == "accuracy" else reached / 0.95


def _std(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1 in the denominator), or None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Any) -> float | None:
    """Return the mean of the values that are not None, or None if there are none."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None
