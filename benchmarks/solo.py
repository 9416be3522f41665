"""SOLO beside backprop and its own ablations, on the texts of Shakespeare: the tables of docs/rules/solo.md.

    python benchmarks/solo.py rules --steps 400
    python benchmarks/solo.py readouts --steps 400 --seeds 3
    python benchmarks/solo.py readouts --steps 400 --only private solo

"rules" reads bytes; "readouts" reads 2,048 tokens of byte-pair encoding, since the read-out matters more for a large
vocabulary. All train the Transformer of tinyshakespeare/transformer_backprop with its recipe for a number of steps.
"""

import argparse
import math
import statistics
from typing import Any

from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train

RULES: dict[str, dict[str, dict[str, Any]]] = {
    "rules": {
        "backprop": {"name": "backprop"},
        "shallow": {"name": "shallow", "taps": 3},
        "mono_forward, K = 4": {"name": "mono_forward", "taps": 3},
        "solo, K = 4, H = 1": {"name": "solo", "depth": 1},
        "solo, K = 2, H = 1": {"name": "solo", "depth": 1, "taps": 1},
        "solo, K = 4, H = 0": {"name": "solo", "depth": 0},
        "solo, K = 4, H = 1, S = 50": {"name": "solo", "depth": 1, "refresh": 50},
        "solo, K = 4, H = 1, every 2": {"name": "solo", "depth": 1, "every": 2},
    },
    "readouts": {
        "random": {"name": "solo", "depth": 1, "readout": "random"},
        "private": {"name": "solo", "depth": 1, "readout": "private"},
        "solo": {"name": "solo", "depth": 1},
        "backprop": {"name": "backprop"},
    },
}


def main() -> None:
    """Train, and print a line for each run and a table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(RULES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="rows of the table, by their names; default: all")
    asked = parser.parse_args()
    names = [n for n in RULES[asked.table] if not asked.only or n in asked.only]
    found = {name: [trained(asked.table, name, asked.steps, seed) for seed in range(asked.seeds)] for name in names}
    print("\n| rule | test loss | CPU s |\n|---|---:|---:|")
    for name, runs in found.items():
        losses, seconds = zip(*runs, strict=True)
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        print(f"| {name} | {statistics.fmean(losses):.3f}{spread} | {statistics.fmean(seconds):.0f} |")


def trained(table: str, name: str, steps: int, seed: int) -> tuple[float, float]:
    """Return the test loss of a run in nats for each token, and its CPU seconds."""
    values = load_config("tinyshakespeare/transformer_backprop").plain()
    if table == "readouts":
        values["data"]["vocabulary"] = values["net"]["vocabulary"] = 2048
    values["rule"], values["train"]["seed"] = RULES[table][name], seed
    windows = len(parse(values).data.load().train.y)
    samples = steps * values["data"]["batch_size"]
    values["train"]["epochs"] = epochs = math.ceil(samples / windows)
    values["data"]["fraction"] = samples / (epochs * windows)
    run = train(parse(values), verbose=False)
    loss, seconds = run.result["test"]["loss"], run.result["cpu_seconds"]
    print(f"{name}, seed {seed}, {run.trainer.progress.step} steps: {loss:.4f}, {seconds:.0f} CPU s", flush=True)
    return loss, seconds


if __name__ == "__main__":
    main()
