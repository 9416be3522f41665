"""A record of a comparison with every rule, as compare.json has it, but without trainings."""

import random
import statistics as numbers

from bpfree.diffusion import DiffusionRule
from bpfree.lab.statistics import holm, verdict
from bpfree.population.rule import BlackBoxRule
from bpfree.rules import RULES

CONTROLS = ("backprop, checkpointed", "backprop, accumulated", "backprop, deep supervision", "shallow")
MLP, DENOISER = "mlp 784-128-128-10", "denoiser, mlp, 10 blocks"


def record(rules=tuple(RULES), *, seeds=3, metric="accuracy", command="bpfree compare mnist/mlp --rules all"):
    """All rules of the package on two nets, each with learning curves and costs that differ by factors."""
    dice = random.Random(0)
    rows = [row("backprop", "backprop", MLP, 0.97, dice, seeds, metric, kind="baseline")]
    rows += [
        row(name, "shallow" if name == "shallow" else "backprop", MLP, 0.97, dice, seeds, metric, kind="control")
        for name in CONTROLS
    ]
    rows += [row("backprop (net of noprop_dt)", "backprop", DENOISER, 0.985, dice, seeds, metric, kind="baseline")]
    for name in rules:
        if name not in ("backprop", "shallow"):
            kind = RULES.get(name, object)
            net = DENOISER if issubclass(kind, DiffusionRule) else MLP
            rows.append(row(name, name, net, dice.choice((0.98, 0.95, 0.94, 0.9, 0.65)), dice, seeds, metric))
            if getattr(kind, "has_heads", False):
                rows[-1] |= {"rule_parameters": 34_000.0, "net_flops": 470_000.0, "head_flops": 210_000.0}
            if issubclass(kind, BlackBoxRule):
                rows[-1] |= {"queries": 70_000.0}
    compare(rows)
    config = {"data": {"name": "mnist"}, "net": {"name": "mlp"}, "train": {"epochs": 5}}
    group = {"name": "mlp", "config": config, "rows": rows, "target": 0.92}
    machine = {"processor": "AMD EPYC", "cores": "2", "torch": "2.13.0"}
    return {"command": command, "date": "2026-01-01", "machine": machine, "groups": [group]}


def row(name, rule, net, level, dice, seeds, metric, kind="rule"):
    """A row whose runs reach about this level in five epochs."""
    pace = dice.choice((1.0, 1.1, 4.0, 40.0))
    runs = []
    for seed in range(seeds):
        end = level - 0.01 * dice.random()
        curve = [[e, 0.4 * pace * e, end - 0.3 * dice.random() / e**2] for e in range(1, 6)]
        runs.append(
            {"seed": seed, "score": end, "metric": metric, "split": "test", "test": {}, "watched": "validation"}
            | {"curve": curve, "samples_per_second": 123_456.0 / pace}
        )
    scores = [run["score"] for run in runs]
    made = {"name": name, "rule": rule, "net": net, "kind": kind, "baseline": "", "notes": [], "config": {"rule": rule}}
    made |= {"runs": runs, "metric": metric, "mean": numbers.fmean(scores)}
    made |= {"std": numbers.stdev(scores) if seeds > 1 else None, "reached_target": 0, "cpu_seconds": 2.0 * pace}
    made |= {"wall_seconds": 2.6 * pace, "step_memory_bytes": 1e6 * pace, "peak_memory_bytes": 5e8}
    made |= {"memory_growth_bytes": 23.4e6 * pace}
    made |= {"parameters": 118_282.0, "rule_parameters": 0.0, "samples_per_second": 123_456.0 / pace}
    return made | {"energy_joules": 31.4 * pace, "queries": 4225.0}


def compare(rows):
    """Give each row its difference from the baseline of its net, with an interval of a point."""
    baselines = {row["net"]: row for row in rows if row["kind"] == "baseline"}
    compared = [row for row in rows if row["kind"] != "baseline"]
    for each in compared:
        base, seeds = baselines[each["net"]], len(each["runs"])
        difference = each["mean"] - base["mean"]
        each |= {"baseline": base["name"], "difference": difference, "seeds_compared": seeds}
        if seeds > 2:
            each |= {"interval": [difference - 0.01, difference + 0.01], "p": 0.5 if abs(difference) < 0.01 else 1e-6}
    tested = [each for each in compared if "p" in each]
    for each, corrected in zip(tested, holm([each["p"] for each in tested]), strict=True):
        each["p_holm"] = corrected
    for each in compared:
        each["verdict"] = verdict(each["difference"], each.get("p_holm"), is_loss=each["metric"] == "loss")
