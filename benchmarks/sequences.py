"""The tables of docs/sequences.md: one-step error, rollout, valid time, cost.

Called with folders that `bpfree compare` wrote, or with folders of runs called <rule>-<seed>; the commands are on that
page.
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
        for title, rows in compared(Path(folder)) if (Path(folder) / "compare.json").exists() else runs(Path(folder)):
            print(f"**{title}**\n")
            print("| rule | one-step error | rollout | valid time | CPU s | MB of a step | parameters |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for row in rows:
                print(line(row))
            print()


def compared(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return a title and the rows for each group of a comparison."""
    record = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    machine = record["machine"]
    where = f"{record['date']}, {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    return [(f"{group['name']}, net {group['config']['net']}; {where}", group["rows"]) for group in record["groups"]]


def runs(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return a title, and a row for each rule of the runs in a folder."""
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        by_rule.setdefault(path.parent.name.rpartition("-")[0], []).append(result)
    costs = ("cpu_seconds", "step_memory_bytes", "parameters", "rule_parameters")
    rows = [
        {"name": rule, "runs": own} | {cost: statistics.fmean(run[cost] for run in own) for cost in costs}
        for rule, own in by_rule.items()
    ]
    return [(str(folder), rows)]


def line(row: dict[str, Any]) -> str:
    """Return a row of the table: means over seeds, with standard deviations."""
    if not row["runs"]:
        return f"| {row['name']} | {'; '.join(row['errors'])} | | | | | |"
    shown = [spread([run["test"][name] for run in row["runs"]], digits) for name, digits in FIGURES.items()]
    own = row["parameters"] + row["rule_parameters"]
    cost = [f"{row['cpu_seconds']:.1f}", f"{row['step_memory_bytes'] / 1e6:.1f}", f"{own:,.0f}"]
    return f"| {' | '.join([row['name'], *shown, *cost])} |"


def spread(values: list[float], digits: int) -> str:
    """Return mean ± standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
