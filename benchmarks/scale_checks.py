"""Real runs in several processes beside what the simulator says about them; `scale.py` calls it."""

import statistics
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from scale_hosts import two_hosts
from scale_model import Cost, Link, Part, Population, Step, by_members, by_rows
from scale_pipeline import denoising_blocks, local_blocks
from scale_runs import Run, here, on_two_hosts
from scale_subjects import SUBJECTS
from scale_work import LOCAL

from bpfree.rules import RULES

CORES = 2
BUCKET = 8 * 2**20  # bytes that `bpfree.mesh` sends together
DELAY = 0.02  # of the slow link, seconds in each direction
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
    es(256),
    eggroll(1024, steps=30),
    *BLOCKS[:2],
]
APART = [
    Run("data", "backprop", "small", 30),
    Run("data", "backprop", "wide", 10),
    Run("data", LOCAL, "wide", 10),
    Run("data", "backprop", "conv", 10),
    *(eggroll(members, steps=40) for members in (32, 64, 128, 1024)),
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
        # gloo sends when the receiver has asked, and a process asks when it needs the features. That is the queue of 0.
        return local_blocks(parts, samples, ranks, link._replace(trips=1), queue=0)
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


def link_of(sums: dict[str, float], latency: float | None = None) -> Link:
    """Return the link between two processes, from the measured seconds of sums over both.

    Args:
        sums: seconds by bytes, from the mode "sum" of `scale_worker.py`.
        latency: of the link, if it is known; otherwise half of the time of a tiny sum.
    """
    tiny, *_, middle, large = sorted(sums, key=int)
    bandwidth = (int(large) - int(middle)) / (sums[large] - sums[middle])
    if latency is None:
        return Link(bandwidth, sums[tiny] / 2, header=0)
    return Link(bandwidth, latency, trips=2, header=0)


def on_this_machine(sizes: Sequence[int]) -> dict[str, Any]:
    """Return the trainings with several numbers of processes, and the link between two of them.

    Args:
        sizes: numbers of processes.
    """
    link = link_of(here(SUMS, 2)[0]["sums"])
    rows = []
    for run in filter(possible, HERE):
        for ranks in (1, *sizes):
            # One process has no mesh.
            rows.append(_row(run, here(run if ranks > 1 else run._replace(mode="auto"), ranks)))
            print(rows[-1])
    return {"link": link, "rows": rows}


def over_a_slow_link() -> dict[str, Any]:
    """Return the trainings on two hosts with a slow link, the link, and its traffic while nothing is trained."""
    rows = []
    with two_hosts("100mbit", DELAY):
        link = link_of(on_two_hosts(SUMS)[0]["sums"], DELAY)
        idle = on_two_hosts(IDLE)
        quiet = sum(map(_bytes, idle)) / len(idle) / idle[0]["passed"]
        for run in filter(possible, APART):
            found = on_two_hosts(run)
            counted = statistics.fmean(map(_bytes, found)) - quiet * found[0]["passed"]
            packets = sum(found[0]["counted"][name] for name in ("rx_packets", "tx_packets"))
            rows.append(_row(run, found) | {"bytes": counted / run.steps, "packets": packets / run.steps})
            print(rows[-1])
    return {"link": link, "idle": quiet, "rows": rows}


def _bytes(found: dict[str, Any]) -> int:
    """The bytes that a host sent and received: with two hosts, all that was on the link."""
    counted: dict[str, int] = found["counted"]
    return counted["rx_bytes"] + counted["tx_bytes"]


def _row(run: Run, found: list[dict[str, Any]]) -> dict[str, Any]:
    wall, delays = (
        [max(of_step) for of_step in zip(*(rank[kind] for rank in found), strict=True)]
        for kind in ("seconds", "delays")
    )
    free = sorted(each - delay for each, delay in zip(wall, delays, strict=True))
    tenth = len(free) // 10
    return {
        "run": run._asdict(),
        "ranks": len(found),
        "seconds": statistics.median(wall),
        "free": statistics.median(free),
        "low": free[tenth],
        "high": free[-1 - tenth],
        "cpu": statistics.fmean(each["cpu"] for each in found),
        "others": found[0]["others"],
    }
