"""Real runs in several processes beside what the simulator says about them; `scale.py` calls it."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

from scale_hosts import two_hosts
from scale_model import FLOAT, Cost, Link, Part, Population, Step, by_members, by_rows
from scale_pipeline import denoising_blocks, local_blocks
from scale_runs import Run, here, median_step, on_two_hosts
from scale_subjects import SUBJECTS
from scale_work import LOCAL

from bpfree.rules import RULES

CORES = 2
BUCKET = 8 * 2**20  # bytes that `bpfree.mesh` sends together
RATE, DELAY = 100e6 / 8, 0.02  # of the slow link: bytes per second, and seconds in each direction
IDLE = Run("idle", steps=100)
SUMS = Run("sum", steps=9)


def es(members: int, subject: str = "small", steps: int = 20) -> Run:
    """Return a run of evolution strategies, with members one by one."""
    return Run("population", {"name": "es", "population": members, "evaluator": "loop"}, subject, steps)


def eggroll(members: int, subject: str = "small", steps: int = 20) -> Run:
    """Return a run of EGGROLL, with members side by side."""
    return Run("population", {"name": "eggroll", "population": members, "evaluator": "lowrank"}, subject, steps)


BLOCKS = [
    Run("blocks", LOCAL, "deep", 20),
    Run("blocks", "noprop_dt", "noprop", 6),
    Run("blocks", "noprop_dt", "noprop_shared", 6),
]
HERE = [
    Run("data", "backprop", "wide", 40),
    Run("data", LOCAL, "wide", 40),
    Run("data", "backprop", "conv", 15),
    es(256),
    eggroll(1024, steps=30),
    *BLOCKS,
]
APART = [
    Run("data", "backprop", "small", 30),
    Run("data", "backprop", "wide", 10),
    Run("data", LOCAL, "wide", 10),
    Run("data", "backprop", "conv", 10),
    *(eggroll(members, steps=40) for members in (32, 64, 128, 256, 1024, 4096)),
    es(256),
    *BLOCKS,
]


class Work(NamedTuple):
    """The measured work: see `scale_work.read`."""

    parts: dict[str, list[Part]]
    populations: dict[str, Population]


def name_of(run: Run) -> str:
    """Return the rule of a run, and the size of its population."""
    if isinstance(run.rule, str):
        return run.rule
    return f"{run.rule['name']}, {run.rule['population']} members"


def possible(run: Run) -> bool:
    """Return True if the rule of a run can be split in this mode."""
    rule = run.rule if isinstance(run.rule, str) else run.rule["name"]
    return run.mode in RULES[rule].mesh_modes


def predicted(run: Run, work: Work, ranks: int, link: Link) -> Step:
    """Return what the simulator says about a run.

    Args:
        run: the run.
        work: of its net.
        ranks: number of processes.
        link: between them.
    """
    samples = SUBJECTS[run.subject].batch
    if run.mode == "population":
        assert isinstance(run.rule, dict)
        return by_members(work.populations[run.rule["name"]], run.rule["population"], samples, ranks, link)
    parts = work.parts[run.subject]
    if run.mode == "data":
        local = run.rule == LOCAL
        bucket = BUCKET if local else inf  # only local rules send a part while others compute
        return by_rows(parts, samples, ranks, link, local=local, bucket=bucket, algorithm="ring")
    if run.rule == LOCAL:
        return local_blocks(parts, samples, ranks, link)
    return denoising_blocks(parts, samples, ranks, link, shared=run.subject == "noprop_shared")


def shared_cores(work: Work, ranks: int) -> Work:
    """Return the work as it takes longer if more ranks than cores run on one machine."""
    factor = max(1.0, ranks / CORES)

    def slower(cost: Cost) -> Cost:
        return Cost(cost.fixed * factor, cost.sample * factor)

    parts = {
        name: [
            part._replace(
                forward=slower(part.forward),
                backward=slower(part.backward),
                learn=slower(part.learn),
                update=part.update * factor,
            )
            for part in each
        ]
        for name, each in work.parts.items()
    }
    populations = {
        name: Population(slower(each.member), each.noise * factor, each.fixed * factor)
        for name, each in work.populations.items()
    }
    return Work(parts, populations)


def link_here() -> Link:
    """Return the link between two processes of this machine, from sums of a small and a large tensor."""
    sums = here(SUMS, 2)[0]["sums"]
    small, *_, large = (sums[size] for size in sorted(sums, key=int))
    size = max(map(int, sums))
    return Link(size / (large - small), small / 2, header=0)


def on_this_machine(
    work: Work, sizes: Sequence[int], told: Callable[[dict[str, Any]], None]
) -> Iterator[dict[str, Any]]:
    """Run all trainings with several numbers of processes and yield rows of the table.

    Args:
        work: see `scale_work.read`.
        sizes: numbers of processes.
        told: called with each row as soon as it is there.
    """
    link = link_here()
    for run in filter(possible, HERE):
        for ranks in (1, *sizes):
            single = run._replace(mode="auto")  # one process has no mesh
            found = here(run if ranks > 1 else single, ranks)
            row = _row(run, found, predicted(run, shared_cores(work, ranks), ranks, link), ranks)
            row["busy"] = predicted(run, work, ranks, link).busy
            told(row)
            yield row


def over_a_slow_link(work: Work, told: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """Run all trainings on two hosts with a slow link and yield rows of the table; see `on_this_machine`."""
    link = Link(RATE, DELAY, trips=2)
    with two_hosts("100mbit", DELAY):
        idle = on_two_hosts(IDLE)
        quiet = sum(_bytes(each) for each in idle) / len(idle) / idle[0]["passed"]  # bytes per second on the link
        for run in filter(possible, APART):
            found = on_two_hosts(run)
            row = _row(run, found, predicted(run, work, 2, link), 2)
            counted = statistics.fmean(map(_bytes, found)) - quiet * found[0]["passed"]
            row["bytes"] = counted / run.steps
            row["packets"] = sum(found[0]["counted"][name] for name in ("rx_packets", "tx_packets")) / run.steps
            row["idle"] = quiet
            told(row)
            yield row


def _bytes(found: dict[str, Any]) -> int:
    """The bytes that a host sent and received: with two hosts, all that was on the link."""
    counted: dict[str, int] = found["counted"]
    return counted["rx_bytes"] + counted["tx_bytes"]


def _row(run: Run, found: list[dict[str, Any]], step: Step, ranks: int) -> dict[str, Any]:
    seconds = sorted(max(each) for each in zip(*(rank["seconds"] for rank in found), strict=True))
    tenth = len(seconds) // 10
    return {
        "mode": run.mode,
        "rule": name_of(run),
        "net": run.subject,
        "ranks": ranks,
        "members": run.rule["population"] if isinstance(run.rule, dict) else None,
        "predicted": step.seconds,
        "measured": median_step(found),
        "low": seconds[tenth],
        "high": seconds[-1 - tenth],
        "busy": step.busy,
        "cpu": statistics.fmean(each["cpu"] for each in found),
        "sent": sum(step.sent),
        "others": found[0]["others"],
        "weights": found[0].get("parameters", 0) * FLOAT,
    }
