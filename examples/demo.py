"""Train every rule on the embedded digits, beside backprop, and compare: `make demo`.

Each rule runs with its shipped config, `digits/<rule>`. Prints one table and writes the curves of all rules into one
picture; the run folders are kept beside it.
"""

import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bpfree.config import load_config
from bpfree.lab.plots import compare_training
from bpfree.rules import RULES
from bpfree.run import Run, train

OUT = Path("runs/demo")


def table(runs: dict[str, Run]) -> Table:
    """One row for each rule."""
    shown = Table(title="digits: 1,797 real images of 8x8 pixels, 360 of them for the test")
    shown.add_column("rule")
    for heading in ("test accuracy", "seconds", "peak memory of a step", "parameters"):
        shown.add_column(heading, justify="right")
    for rule, run in runs.items():
        result = run.result
        shown.add_row(
            rule,
            f"{result['test']['accuracy']:.4f}",
            f"{result['wall_seconds']:.1f}",
            f"{result['step_memory_bytes'] / 1e6:.2f} MB",
            f"{result['parameters']:,}",
        )
    return shown


def main() -> None:
    """Train, print, plot."""
    torch.set_num_threads(1)  # the nets are so small that a second thread only gets in the way
    shutil.rmtree(OUT, ignore_errors=True)
    console = Console(width=None if Console().is_terminal else 100)
    runs = {}
    for rule in RULES:
        console.print(f"training digits/{rule} ...")
        runs[rule] = train(load_config(f"digits/{rule}"), out=OUT / rule)
    console.print(table(runs))
    curves = OUT / "curves.png"
    compare_training({rule: run.metrics for rule, run in runs.items()}, curves)
    console.print(f"curves: {curves}")


if __name__ == "__main__":
    main()
