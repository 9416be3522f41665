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
from scale_checks import Work, on_this_machine, over_a_slow_link
from scale_curves import draw, tables
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
    work = Work(*read(json.loads(WORK.read_text())))
    if options.part == "draw":
        draw(work)
        for table in (*tables(work), *map(table_of, _checks().items())):
            Console(width=120).print(table)
        return
    rows = on_this_machine(work, options.ranks, print) if options.part == "here" else over_a_slow_link(work, print)
    _write(CHECKS, _checks() | {options.part: {"rows": list(rows), **about()}})


def about() -> dict[str, str]:
    """Return when and with what something was measured."""
    return {"torch": torch.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}


def _checks() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CHECKS.read_text()) if CHECKS.exists() else {}
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n")


def table_of(part: tuple[str, dict[str, Any]]) -> Table:
    """Return the table of real runs beside their simulation.

    Args:
        part: "here" or "hosts", and what it found.
    """
    name, found = part
    apart = name == "hosts"
    last = ["bytes on the link", "for each member"] if apart else ["CPU ms", "simulated", "used by others"]
    table = Table("mode", "rule", "net", "ranks", "ms", "10 to 90 %", "simulated", "error", *last, title=name)
    for row in found["rows"]:
        error = f"{100 * (row['predicted'] / row['measured'] - 1):+.0f} %"
        times = [f"{1e3 * row[key]:.1f}" for key in ("measured", "low", "high", "predicted", "cpu", "busy")]
        if apart:
            each = f"{row['bytes'] / row['members']:.1f}" if row["members"] else ""
            rest = [f"{row['bytes']:,.0f}", each]
        else:
            rest = [*times[4:], f"{row['others']:.2f}"]
        start = [row["mode"] if row["ranks"] > 1 else "", row["rule"], row["net"], str(row["ranks"])]
        table.add_row(*start, times[0], f"{times[1]} to {times[2]}", times[3], error, *rest)
    return table


if __name__ == "__main__":
    main()
