"""A Markdown table of finished runs: mean and spread over the seeds of each config.

python benchmarks/table.py runs/*/
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

COLUMNS = ["data", "config", "test accuracy, %", "seeds", "epochs", "CPU s", "memory of a step, MB", "parameters"]


def spread(values: list[float]) -> str:
    """Return the mean, and for several values the standard deviation."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def main(folders: list[str]) -> None:
    """Read result.json of each folder, named <data>-<config>-<seed>, and print the table."""
    groups = defaultdict(list)
    for folder in folders:
        result = json.loads((Path(folder) / "result.json").read_text())
        config = Path(folder).name.rpartition("-")[0].removeprefix(f"{result['dataset']}-")
        groups[result["dataset"], config].append(result)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * 2 + "---:|" * (len(COLUMNS) - 2))
    for (dataset, config), results in sorted(groups.items()):
        first = results[0]
        cells = [
            dataset,
            f"`{config}`",
            spread([100 * r["test"]["accuracy"] for r in results]),
            str(len(results)),
            str(first["epochs"]),
            f"{statistics.fmean(r['cpu_seconds'] for r in results):.0f}",
            f"{first['step_memory_bytes'] / 1e6:.1f}",
            f"{first['parameters']:,}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
