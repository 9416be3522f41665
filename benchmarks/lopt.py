"""LoPT beside full fine-tuning: the loss on a second text, and what is left of the first one; see docs/rules/lopt.md.

    bpfree train tinyshakespeare/transformer_backprop --out runs/first
    python benchmarks/lopt.py runs/first second.txt --steps 200

Each rule starts with the weights of the run, and trains on the second text for the same number of steps. The text is a
file of at least 2.3 kB for each step. "frozen half" is backprop with a first half that does not move. With "a tenth"
and "a hundredth" the learning rate of the first half is this share of `--lr`.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import bpfree
from bpfree.data import Split
from bpfree.runs.config import DataConfig, parse
from bpfree.runs.config_file import load_config
from bpfree.runs.run import Run
from bpfree.runs.train import train
from bpfree.training.evaluation import evaluate_split

RULES: Mapping[str, tuple[dict[str, Any], list[str]]] = {
    "backprop": ({"name": "backprop"}, []),
    "frozen half": ({"name": "backprop"}, ["embed*", "block1*", "block2*"]),
    "lopt": ({"name": "lopt", "drift": 10}, []),
    "lopt, a tenth": ({"name": "lopt", "drift": 10, "hidden_lr": 0.1}, []),  # here a share of --lr
    "lopt, a hundredth": ({"name": "lopt", "drift": 10, "hidden_lr": 0.01}, []),
    "mono_forward, K = 2": ({"name": "mono_forward", "taps": 1}, []),
}


def main() -> None:
    """Print the losses in nats for each byte, as means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of the first run")
    parser.add_argument("second", help="the second text")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--only", nargs="*", help="rows of the table, by their names; default: all")
    asked = parser.parse_args()
    first = bpfree.load(asked.run)
    old, new = DataConfig(name="tinyshakespeare", context=64).load(), text(asked.second).load()
    print("| rule | first text | second text | CPU s |\n|---|---:|---:|---:|")
    print(f"| before | {loss(first, old.test):.3f} | {loss(first, new.test):.3f} | |")
    for name in asked.only or RULES:
        found = [fine_tuned(name, asked, len(new.train.y), seed) for seed in range(asked.seeds)]
        before, after = (statistics.fmean(loss(run, data.test) for run in found) for data in (old, new))
        seconds = statistics.fmean(run.result["cpu_seconds"] for run in found)
        print(f"| {name} | {before:.3f} | {after:.3f} | {seconds:.0f} |", flush=True)
        for key, value in found[0].metrics[-1]["train"].items():
            if key.startswith("drift/"):
                print(f"  {key}: {value:.2f}, the mean over the last epoch")


def text(path: str) -> DataConfig:
    """Return the options of the second text."""
    return DataConfig(name="text", path=path, context=64)


def fine_tuned(name: str, asked: argparse.Namespace, windows: int, seed: int) -> Run:
    """Return a run that started with the weights of the first one."""
    values = load_config("tinyshakespeare/transformer_backprop").plain()
    values["data"] |= {"name": "text", "path": asked.second}
    values["data"]["fraction"] = min(1.0, asked.steps * values["data"]["batch_size"] / windows)
    rule, freeze = RULES[name]
    share = {"hidden_lr": rule["hidden_lr"] * asked.lr} if "hidden_lr" in rule else {}
    values["rule"] = rule | share
    values["optimizer"]["lr"] = asked.lr
    values["train"] |= {"start_from": asked.run, "freeze": freeze, "seed": seed}
    return train(parse(values), verbose=False)


def loss(run: Run, split: Split | None) -> float:
    """Return the loss of a run on a split, in nats for each byte."""
    assert split is not None
    return evaluate_split(run.task, run.batches(split).epoch(), run.trainer.predict, run.net).metrics["loss"]


if __name__ == "__main__":
    main()
