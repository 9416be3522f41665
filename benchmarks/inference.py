"""Test accuracy of finished NoProp runs by kind of inference: number of steps, solver, noise, how z is read.

python benchmarks/inference.py runs/mnist-noprop_ct-0 [...] [--data-dir DIR]
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import bpfree
from bpfree.data import DATASETS, data_directory
from bpfree.diffusion import DiffusionRule
from bpfree.diffusion.times import TimeRule

STEPS = (1, 2, 5, 10, 50)


def variants(rule: DiffusionRule) -> list[dict[str, object]]:
    """Return the settings of the rule's options to try."""
    common = [{"inference": kind} for kind in ("deterministic", "stochastic")]
    if not isinstance(rule, TimeRule):
        return common
    grid = [{"solver": "euler", "steps": steps, **kind} for steps in STEPS for kind in common]
    grid += [{"solver": "heun", "steps": 5, **kind} for kind in common]
    return [*grid, {"solver": "dopri5", "steps": 1, "inference": "deterministic"}]


def main() -> None:
    """Evaluate the runs and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    for folder in options.runs:
        run = bpfree.load(folder)
        rule = run.trainer.rule
        assert isinstance(rule, DiffusionRule)
        data = DATASETS[run.config.data.name](data_directory(options.data_dir or run.config.data.dir))
        table = Table("inference", "test accuracy %", title=str(folder))
        first = run.trainer.extra_outputs
        alone = [next(iter(first(batch.x).values())).argmax(1) == batch.y for batch in run.batches(data.test).epoch()]
        table.add_row("first block or step alone", f"{100 * float(torch.cat(alone).double().mean()):.2f}")
        for setting in variants(rule):
            for name, value in setting.items():
                setattr(rule, name, value)
            accuracy = run.trainer.evaluate(run.batches(data.test))["accuracy"]
            table.add_row(" ".join(map(str, setting.values())), f"{100 * accuracy:.2f}")
        Console(width=80).print(table)


if __name__ == "__main__":
    main()
