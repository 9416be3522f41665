"""Time and traffic of a training step on 2 to 10,000 ranks, computed from measured parts and checked by real runs.

    python benchmarks/scale.py measure [--rounds 15]  # work of one process -> benchmarks/scale-work.json
    python benchmarks/scale.py here [--ranks 2 3 4]   # processes on this machine -> benchmarks/scale-checks.json
    python benchmarks/scale.py hosts                  # two hosts, 100 Mbit/s, 20 ms; as root on Linux -> the same file
    python benchmarks/scale.py draw                   # tables on the screen, curves in docs/images/scale*.png

docs/scale.md explains the results. `scale_model.py` and `scale_pipeline.py` are the simulator.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scale_checks import CORES, Work, name_of, on_this_machine, over_a_slow_link, predicted, shared_cores
from scale_curves import draw, tables
from scale_model import Link
from scale_runs import Run
from scale_work import measured, read

WORK, CHECKS = (Path(__file__).with_name(f"scale-{name}.json") for name in ("work", "checks"))


def main() -> None:
    """Run one of the four parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["measure", "here", "hosts", "draw"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    options = parser.parse_args()
    if options.part == "measure":
        _write(WORK, measured(options.rounds) | about())
        return
    if options.part == "draw":
        work = Work(*read(json.loads(WORK.read_text())))
        draw(work)
        for table in (*tables(work), *(table_of(name, found, work) for name, found in _checks().items())):
            Console(width=130).print(table)
        return
    found = on_this_machine(options.ranks) if options.part == "here" else over_a_slow_link()
    _write(CHECKS, _checks() | {options.part: found | about()})


def about() -> dict[str, str]:
    """Return when and with what something was measured."""
    return {"torch": torch.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}


def _checks() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CHECKS.read_text()) if CHECKS.exists() else {}
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n")


def table_of(name: str, found: dict[str, Any], work: Work) -> Table:
    """Return the table of real runs beside their simulation.

    Args:
        name: "here" or "hosts".
        found: the runs.
        work: the measured work.
    """
    apart, link = name == "hosts", Link(*found["link"])
    last = ["bytes on the link", "for each member"] if apart else ["CPU ms", "simulated", "used by others"]
    table = Table(
        "mode", "rule", "net", "ranks", "ms", "undisturbed", "10 to 90 %", "simulated", "error", *last, title=name
    )
    for row in found["rows"]:
        run, ranks = Run(**row["run"]), row["ranks"]
        step = predicted(run, work if apart else shared_cores(work, ranks), ranks, link)
        # More ranks than cores wait for each other: this waiting belongs to the time, and "free" is without it.
        real = row["free"] if apart or ranks <= CORES else row["seconds"]
        error = f"{100 * (step.seconds / real - 1):+.0f} %"
        times = (row["seconds"], row["free"], row["low"], row["high"], step.seconds)
        ms, free, low, high, simulated = (f"{1e3 * each:.1f}" for each in times)
        if apart:
            members = run.rule["population"] if isinstance(run.rule, dict) else 0
            rest = [f"{row['bytes']:,.0f}", f"{row['bytes'] / members:.1f}" if members else ""]
        else:
            busy = predicted(run, work, ranks, link).busy
            rest = [f"{1e3 * row['cpu']:.1f}", f"{1e3 * busy:.1f}", f"{row['others']:.2f}"]
        mode = run.mode if ranks > 1 else "alone"
        table.add_row(
            mode, name_of(run), run.subject, str(ranks), ms, free, f"{low} to {high}", simulated, error, *rest
        )
    return table


if __name__ == "__main__":
    main()
