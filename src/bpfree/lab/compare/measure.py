"""What the runs of a comparison came to."""

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
"""An entry of compare.json."""

_COSTS = ("cpu_seconds", "wall_seconds", "step_memory_bytes", "peak_memory_bytes", "parameters", "rule_parameters")


def measure_entry(entry: Entry, jobs: Sequence[Job], failed: Mapping[str, str], root: Path) -> Row:
    """The runs of one entry, a seed each, and their means.

    Args:
        entry: as planned.
        jobs: its runs, those that failed among them.
        failed: what went wrong, by the job's name.
        root: what paths are relative to.
    """
    runs = [_measured(job, root) for job in jobs if job.name not in failed]
    config = portable(entry.config)
    rule = entry.name if entry.refused else config["rule"]["name"]
    row: Row = {"name": entry.name, "rule": rule, "notes": entry.notes, "config": config, "runs": runs}
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
    """As plain values, without where data are on this machine."""
    plain = config.plain()
    return plain | {"data": plain["data"] | {"dir": None}}


def _measured(job: Job, root: Path) -> Row:
    try:
        return _measure_run(job, root)
    except (KeyError, TypeError, statistics.StatisticsError) as error:
        raise UserError(f"{job.folder}: damaged ({error}). Delete it; the same command trains it again") from error


def _measure_run(job: Job, root: Path) -> Row:
    result = folder.read_result(job.folder)
    if result is None:
        raise UserError(f"{job.folder}: its {folder.RESULT} is gone. The same command trains it again")
    epochs = read_run(job.folder).history
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
        "curve": [[r["epoch"], r.get("cpu_seconds", r["seconds"]), r[watched][metric]] for r in epochs],
        "samples_per_second": statistics.median(r["samples_per_second"] for r in epochs),
        "versions": result["versions"],
        **{cost: result[cost] for cost in _COSTS},
    }


def compare_with_baseline(rows: Sequence[Row]) -> Row | None:
    """Add to each row its difference from backprop, paired by seed, in the metric's own unit.

    `p_seeds` is that of a paired t-test over seeds, which speaks of the rule; with one seed or no spread there is none.

    Returns:
        The row of backprop, or of what comes nearest; None if none was trained.
    """
    from scipy.stats import ttest_rel

    trained = [row for row in rows if row["runs"]]
    names = [BASELINE, *(row["name"] for row in trained if row["rule"] == BASELINE)]
    baseline = next((row for name in names for row in trained if row["name"] == name), None)
    if baseline is None:
        return None
    theirs = {run["seed"]: run["score"] for run in baseline["runs"]}
    for row in trained:
        pairs = [(run["score"], theirs[run["seed"]]) for run in row["runs"] if run["seed"] in theirs]
        if row is baseline or not pairs:
            continue
        differences = [own - other for own, other in pairs]
        row["difference"] = statistics.fmean(differences)
        if len(pairs) > 1 and len(set(differences)) > 1:
            row["p_seeds"] = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return baseline


def mcnemar(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """McNemar's exact test on two trained nets: how many samples each alone has right, and p.

    Args:
        first, second: [N], whether a sample was right.
    """
    from scipy.stats import binomtest

    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    return alone, other, float(binomtest(alone, alone + other).pvalue) if alone + other else 1.0


def compare_samples(rows: Sequence[Row], baseline: Row, test: Split, root: Path) -> None:
    """Add to each row what its first net and backprop's alone have right of the test split, and McNemar's p.

    Args:
        rows: of one group; of classifiers.
        baseline: one of them.
        test: the split.
        root: what folders are relative to.
    """
    if test.y.dim() != 1:
        return  # labels of one sample are not independent of each other
    seeds = {run["seed"]: run for run in baseline["runs"]}
    rights: dict[str, Tensor] = {}
    for row in rows:
        common = next((run for run in row["runs"] if run["seed"] in seeds), None)
        if row is baseline or common is None or common["metric"] != "accuracy" or common["split"] != "test":
            continue
        theirs = seeds[common["seed"]]["folder"]
        for place in (common["folder"], theirs):
            if place not in rights:  # its config is that of this comparison, which is the user's own
                rights[place] = load(root / place, trust=True).predict(test.x) == test.y
        alone, other, p = mcnemar(rights[common["folder"]], rights[theirs])
        row |= {"right_alone": alone, "baseline_right_alone": other, "p_samples": p}


def time_to_target(rows: Sequence[Row], target: float, metric: str) -> None:
    """Add to each row the CPU seconds of training after which its runs had reached the target on the watched split."""
    for row in rows:
        reached = [_reached(run["curve"], target, metric) for run in row["runs"]]
        times = [seconds for seconds in reached if seconds is not None]
        row["reached_target"] = len(times)
        if times and len(times) == len(reached):
            row["seconds_to_target"] = statistics.fmean(times)


def _reached(curve: Sequence[Sequence[float]], target: float, metric: str) -> float | None:
    for _, seconds, value in curve:
        if (value <= target) if metric == "loss" else (value >= target):
            return seconds
    return None


def default_target(baseline: Row) -> float:
    """What backprop reaches at its best on the watched split, on average over seeds, less 5 % of it."""
    best = max if baseline["metric"] == "accuracy" else min
    reached = statistics.fmean(best(value for _, _, value in run["curve"]) for run in baseline["runs"])
    return 0.95 * reached if baseline["metric"] == "accuracy" else reached / 0.95


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
