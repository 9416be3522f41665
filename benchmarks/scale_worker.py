"""One of the processes that `scale_runs.py` starts: it trains some steps and writes when each of them ended.

    python benchmarks/scale_worker.py --mode data --rule backprop --subject wide --steps 30 --out FOLDER

The mode "idle" trains nothing and waits, "sum" averages tensors of two sizes; the others are those of `train.mesh`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scale_link import DEVICE
from scale_subjects import SUBJECTS, batch_of, trainer_of

from bpfree.mesh import Group, join, rank_of_process

WARM_UP = 4
SETTLE = 0.4  # seconds after which the last confirmations of TCP have come
SETTLE_BLOCKS = 2.0  # the same where features may be on their way
SIZES = (8, 2**20, 2**23)  # bytes that the mode "sum" averages


def counters(device: str = DEVICE) -> dict[str, int]:
    """Return the bytes and packets that the kernel counted on a device of this process's network; zeros without it."""
    names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == device:
            fields = [int(each) for each in rest.split()]
            return dict(zip(names, (fields[0], fields[1], fields[8], fields[9]), strict=True))
    return dict.fromkeys(names, 0)


def delayed() -> float:
    """Return the seconds that this thread was ready to compute and waited for a core that other programs used."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def timed(steps: int, step: Callable[[], object], settle: float = SETTLE) -> dict[str, Any]:
    """Return the wall seconds of each step, those of them without a core, its processor seconds, and the traffic."""
    for _ in range(WARM_UP):
        step()
    time.sleep(settle)
    before, start, busy = counters(), time.perf_counter(), time.process_time()
    ends, waits = [], [delayed()]
    for _ in range(steps):
        step()
        ends.append(time.perf_counter())
        waits.append(delayed())
    busy = time.process_time() - busy
    time.sleep(settle)
    passed = time.perf_counter() - start
    after = counters()
    seconds = [end - begin for begin, end in pairwise([start, *ends])]
    counted = {name: after[name] - before[name] for name in before}
    found = {"seconds": seconds, "delays": [end - begin for begin, end in pairwise(waits)], "cpu": busy / steps}
    return found | {"counted": counted, "passed": passed}


def averaged(steps: int) -> dict[str, Any]:
    """Return the seconds of a sum over all processes, by the size of the tensor in bytes."""
    group = Group()
    found = {}
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        found[size] = statistics.median(timed(steps, lambda tensor=tensor: group.sum_(tensor))["seconds"])
    return {"sums": found}


def main() -> None:
    """Run the steps and write `FOLDER/<rank>.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", default="auto")
    parser.add_argument(
        "--rule", default="backprop", help='a name, or a spec as JSON: {"name": "es", "population": 64}'
    )
    parser.add_argument("--subject", choices=SUBJECTS, default="wide")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    join()
    if options.mode == "idle":
        found = timed(options.steps, lambda: time.sleep(0.1))
    elif options.mode == "sum":
        found = averaged(options.steps)
    else:
        subject = SUBJECTS[options.subject]
        rule = json.loads(options.rule) if options.rule.startswith("{") else options.rule
        trainer, batch = trainer_of(subject, rule, options.mode), batch_of(subject)
        settle = SETTLE_BLOCKS if options.mode == "blocks" else SETTLE
        found = timed(options.steps, lambda: trainer.step(batch), settle)
        found["parameters"] = sum(p.numel() for p in trainer.net.parameters())
    (options.out / f"{rank_of_process()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
