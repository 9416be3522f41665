"""The results of a comparison: means, differences from backprop, and tests of significance."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.lab.compare.plan import BASELINE, Entry
from bpfree.lab.jobs.jobs import Job
from bpfree.lab.report.records import read_run
from bpfree.runs import folder
from bpfree.runs.config import Config
from bpfree.runs.load import load

Row = dict[str, Any]
"""A row of compare.json: an entry with its runs, means and differences."""

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
    # Most errors are the same for all seeds, and the report shows each of them once.
    errors = list(dict.fromkeys(failed[job.name] for job in jobs if job.name in failed))
    errors = [entry.refused] if entry.refused else errors
    if errors:
        row["errors"] = errors
    if runs:
        scores = [run["score"] for run in runs]
        row |= {"metric": runs[0]["metric"], "mean": statistics.fmean(scores), "std": _std(scores)}
        row |= {cost: _mean(run[cost] for run in runs) for cost in (*_COSTS, "samples_per_second")}
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
    }


def compare_with_baseline(rows: Sequence[Row]) -> Row | None:
    """Add to each row its difference from backprop, and the p value of a paired t-test over the seeds.

    A row gets `difference`, the mean over the seeds that both have, in the unit of the metric. It gets `p_seeds` if
    there are two such seeds or more and their differences are not all equal.

    Args:
        rows: rows of one group, which are changed.

    Returns:
        The row of backprop, or the first row of another config that trains with backprop; None if none was trained.
    """
    from scipy.stats import ttest_rel

    trained = [row for row in rows if row["runs"]]
    # A net of denoising blocks has no row of this name. A config that trains it with backprop is then the baseline.
    names = [BASELINE, *(row["name"] for row in trained if row["rule"] == BASELINE)]
    baseline = next((row for name in names for row in trained if row["name"] == name), None)
    if baseline is None:
        return None
    # Runs with one seed have the same initial weights and batches, so their difference varies less than their scores.
    backprop = {run["seed"]: run["score"] for run in baseline["runs"]}
    for row in trained:
        pairs = [(run["score"], backprop[run["seed"]]) for run in row["runs"] if run["seed"] in backprop]
        if row is baseline or not pairs:
            continue
        differences = [score - other for score, other in pairs]
        row["difference"] = statistics.fmean(differences)
        # Equal differences have no spread, and the t-test would divide by 0.
        if len(pairs) > 1 and len(set(differences)) > 1:
            row["p_seeds"] = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return baseline


def mcnemar(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """Return the counts and the p value of McNemar's exact test, which compares two trained nets on the same samples.

    Args:
        first: bool [N], True where the first net classifies a sample correctly.
        second: bool [N], the same for the second net.

    Returns:
        The number of samples that only the first net has right, the number that only the second has right, and the
        two-sided p value; 1.0 if both numbers are 0.

    Reference:
        McNemar (1947), Note on the sampling error of the difference between correlated proportions or percentages.

    Example:
        >>> import torch
        >>> mcnemar(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        (1, 0, 1.0)
    """
    from scipy.stats import binomtest

    # Samples that both have right, or both have wrong, say nothing about which net is better.
    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    return alone, other, float(binomtest(alone, alone + other).pvalue) if alone + other else 1.0


def compare_samples(rows: Sequence[Row], baseline: Row, test: Split, root: Path) -> None:
    """Compare the first net of each row with backprop's net on the test samples, and add the result to the row.

    A row gets `right_alone`, `baseline_right_alone` and `p_samples`; see `mcnemar`. Rows without accuracy, and data
    with several labels for each sample, are passed over.

    Args:
        rows: rows of one group, which are changed.
        baseline: the row of backprop, one of them.
        test: the test split, N samples.
        root: the folder of the comparison.
    """
    if test.y.dim() != 1:
        return  # McNemar's test needs independent answers, and several labels of one sample are not independent
    seeds = {run["seed"]: run for run in baseline["runs"]}
    rights: dict[str, Tensor] = {}
    for row in rows:
        common = next((run for run in row["runs"] if run["seed"] in seeds), None)
        if row is baseline or common is None or common["metric"] != "accuracy" or common["split"] != "test":
            continue
        theirs = seeds[common["seed"]]["folder"]
        for place in (common["folder"], theirs):
            if place not in rights:  # trust: `Job.is_over` saw that the config is the user's own
                rights[place] = load(root / place, trust=True).predict(test.x) == test.y
        alone, other, p = mcnemar(rights[common["folder"]], rights[theirs])
        row |= {"right_alone": alone, "baseline_right_alone": other, "p_samples": p}


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
