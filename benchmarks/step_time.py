"""CPU seconds of one training step of each rule, as a ratio to backprop on the same net with the same optimiser.

    python benchmarks/step_time.py [--net mlp|conv] [--rounds 30] [--precision float32] [--rules dfa "dfa memory=flat"]

Batch 128, fused Adam, one thread. The rules take turns, five steps at a time, so a machine that slows down slows all of
them; the ratio is the median over the rounds, with the 10th and 90th percentile. The floor by arithmetic:
backprop does three products of a layer for the one of a forward pass; a local rule saves the one that carries the error
to the layer below, except in the first layer, where nobody needs it. On the MLP that is 0.74 of the products, and 0.80
of a step with the activations and the optimiser in it.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from subjects import conv_and_batch, mlp_and_batch, trainers

STEPS, WARM_UP = 5, 2
RULES = [
    *("backprop", "checkpointed", "fa", "usf", "brsf", "frsf", "dfa", "dfa memory=flat", "drtp", "local"),
    *("mono_forward", "mono_forward update=fused", "pred", "sim", "predsim"),
    *("biotorch fa", "biotorch usf", "biotorch brsf", "biotorch frsf", "biotorch dfa"),
]


def main() -> None:
    """Measure all rules and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=["mlp", "conv"], default="mlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--precision", default="float32", help="float32_torch: without the faster library on AMD")
    parser.add_argument("--rules", nargs="+", default=RULES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_net, batch = mlp_and_batch() if options.net == "mlp" else conv_and_batch()
    names = list(dict.fromkeys(["backprop", *options.rules]))
    found = trainers(names, make_net, precision=options.precision)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(options.rounds + WARM_UP):
        for name, trainer in found.items():
            trainer.step(batch)  # brings its weights back to the cache
            before = time.thread_time()
            for _ in range(STEPS):
                trainer.step(batch)
            if round_ >= WARM_UP:
                seconds[name].append((time.thread_time() - before) / STEPS)
    title = f"{options.net}, {options.rounds} rounds, {options.precision}, one thread, torch {torch.__version__}"
    table = Table(title=title)
    for heading in ("rule", "CPU ms per step", "ratio to backprop", "10 to 90 %"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for name, spent in seconds.items():
        ratios = sorted(a / b for a, b in zip(spent, seconds["backprop"], strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        ratio = statistics.median(ratios)
        table.add_row(name, f"{1e3 * statistics.median(spent):.2f}", f"{ratio:.3f}", f"{low:.2f} to {high:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
