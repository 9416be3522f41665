"""The table of docs/sequences.md, of what `bpfree compare` wrote: one-step error, rollout, valid time, cost.

Called with the folders of the comparisons; the commands are on that page.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

FIGURES = {"loss": 5, "rollout": 2, "valid_time": 2}  # decimals


def main(folders: list[str]) -> None:
    """Print a table for each comparison."""
    for folder in folders:
        record = json.loads((Path(folder) / "compare.json").read_text(encoding="utf-8"))
        machine = record["machine"]
        print(f"{record['date']}, {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}\n")
        for group in record["groups"]:
            print(f"**{group['name']}**, net {group['config']['net']}\n")
            print("| rule | one-step error | rollout | valid time | CPU s | MB of a step | parameters |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for row in group["rows"]:
                print(line(row))
            print()


def line(row: dict[str, Any]) -> str:
    """A row of the table: means over seeds, with standard deviations."""
    if not row["runs"]:
        return f"| {row['name']} | {'; '.join(row['errors'])} | | | | | |"
    shown = [spread([run["test"][name] for run in row["runs"]], digits) for name, digits in FIGURES.items()]
    own = row["parameters"] + row["rule_parameters"]
    cost = [f"{row['cpu_seconds']:.1f}", f"{row['step_memory_bytes'] / 1e6:.1f}", f"{own:,.0f}"]
    return f"| {' | '.join([row['name'], *shown, *cost])} |"


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
