"""CPU seconds of one training step of each rule, as a ratio to backprop on the same net with the same optimiser.

    python benchmarks/step_time.py [--rounds 30] [--precision float32]

MLP 784-1000-1000-1000-10 of tanh, batch 128, fused Adam, one thread, float32. The rules take turns, step by step, so a
machine that slows down slows all of them; the ratio is of medians, the spread that of the rounds' own ratios (10th to
90th percentile). A floor by arithmetic: backprop does three matrix products of a layer for the one of a forward pass; a
local rule saves the one that carries the error to the layer below, except in the first layer, where nobody needs it.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from bpfree.nets import mlp
from bpfree.rules import BRSF, DFA, DRTP, FA, FRSF, USF, Backprop, MonoForward
from bpfree.tasks import Classify
from bpfree.trainer import Trainer
from bpfree.types import Batch

RULES = {
    "backprop": Backprop,
    "fa": FA,
    "usf": USF,
    "brsf": BRSF,
    "frsf": FRSF,
    "dfa (memory: fast)": DFA,
    "dfa (memory: flat)": lambda: DFA(memory="flat"),
    "drtp": DRTP,
    "mono_forward": MonoForward,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--precision", default="float32", help="float32_torch: without the faster library on AMD")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = Batch(torch.randn(128, 784), torch.randint(0, 10, (128,)))
    trainers = {}
    for name, make in RULES.items():
        net = mlp(784, 10, hidden=[1000] * 3, activation="tanh")
        trainers[name] = Trainer(net, make(), Classify(10), precision=options.precision)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(options.rounds + 3):
        for name, trainer in trainers.items():
            before = time.process_time()
            trainer.step(batch)
            if round_ >= 3:
                seconds[name].append(time.process_time() - before)
    table = Table(title=f"{options.rounds} rounds, {options.precision}, one thread, torch {torch.__version__}")
    for heading in ("rule", "CPU ms per step", "ratio to backprop", "spread"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    base = seconds["backprop"]
    for name, spent in seconds.items():
        ratios = sorted(a / b for a, b in zip(spent, base, strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        ratio = statistics.median(spent) / statistics.median(base)
        table.add_row(name, f"{1e3 * statistics.median(spent):.2f}", f"{ratio:.3f}", f"{low:.2f} to {high:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
