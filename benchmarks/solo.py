"""The ablation of SOLO's read-out on the texts of Shakespeare, by 2,048 tokens of byte-pair encoding.

    python benchmarks/solo.py --steps 400 --seeds 3
    python benchmarks/solo.py --only private solo

All rows train the Transformer of tinyshakespeare/transformer_backprop with its recipe for a number of steps. The paper
found the order random > private > solo > backprop in the loss. A large vocabulary shows it; bytes do not.
benchmarks/equal.py compares SOLO with other rules.
"""

import argparse
import math
import statistics
from typing import Any

from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train

RULES: dict[str, dict[str, Any]] = {
    "random": {"name": "solo", "depth": 1, "readout": "random"},
    "private": {"name": "solo", "depth": 1, "readout": "private"},
    "solo": {"name": "solo", "depth": 1},
    "backprop": {"name": "backprop"},
}
VOCABULARY = 2048


def main() -> None:
    """Train, and print a line for each run and a table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=tuple(RULES), help="rows of the table; default: all")
    asked = parser.parse_args()
    found = {name: [trained(name, asked.steps, seed) for seed in range(asked.seeds)] for name in asked.only or RULES}
    print("\n| read-out | test loss | CPU s |\n|---|---:|---:|")
    for name, runs in found.items():
        losses, seconds = zip(*runs, strict=True)
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        print(f"| {name} | {statistics.fmean(losses):.3f}{spread} | {statistics.fmean(seconds):.0f} |")


def trained(name: str, steps: int, seed: int) -> tuple[float, float]:
    """Return the test loss of a run in nats for each token, and its CPU seconds."""
    values = load_config("tinyshakespeare/transformer_backprop").plain()
    values["data"]["vocabulary"] = values["net"]["vocabulary"] = VOCABULARY
    values["rule"], values["train"]["seed"] = RULES[name], seed
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
