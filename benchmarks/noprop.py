"""NoProp on MNIST-sized images: CPU seconds for 1,000 training images, peak memory of a step, and both for backprop.

    python benchmarks/noprop.py [--blocks 10] [--batch 256] [--rounds 9]

The paper's convolutional block with batch norm after each convolution, AdamW, clip 1, one thread, random images (time
does not depend on what they show). Rules take turns, one step at a time; the median of the rounds. Backprop trains one
block. The floor for `trunk: own` is that of T blocks trained by backprop; for the others it is one trunk and T heads,
where a head has a seventh of the trunk's products. Memory is counted at the allocator: activations and temporaries, and
with the gradients; parameters and optimiser state are not in it.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from bpfree.nets import Denoiser
from bpfree.tasks import Classify
from bpfree.training.allocator import keep_freed_memory
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

SUBJECTS = {
    "backprop, one block": ("backprop", {"blocks": 1}),
    "dt, trunk own, all": ("noprop_dt", {"trunk": "own"}),
    "dt, trunk own, random t": ({"name": "noprop_dt", "order": "random"}, {"trunk": "own"}),
    "dt, trunk shared, all": ("noprop_dt", {"trunk": "shared"}),
    "dt, trunk shared, side by side": ("noprop_dt", {"trunk": "shared"}),
    "dt, trunk shared, random t": ({"name": "noprop_dt", "order": "random"}, {"trunk": "shared"}),
    "dt, trunk local, all": ("noprop_dt", {"trunk": "local"}),
    "dt, trunk local, random t": ({"name": "noprop_dt", "order": "random"}, {"trunk": "local"}),
    "ct, 1 draw": ("noprop_ct", {"blocks": 1, "head": {"timed": True}}),
    "ct, 8 draws": ({"name": "noprop_ct", "draws": 8}, {"blocks": 1, "head": {"timed": True}}),
    "fm, 8 draws": ({"name": "noprop_fm", "draws": 8}, {"blocks": 1, "head": {"timed": True}}),
}
PRECISIONS = ("float32", "bfloat16")


def trainer(subject: str, precision: str, blocks: int) -> Trainer:
    """Return a trainer of the subject's rule on its net."""
    rule, options = SUBJECTS[subject]
    net = Denoiser((1, 28, 28), 10, **{"blocks": blocks, "backbone": {"name": "conv", "norm": True}, **options})
    net = net.to(memory_format=torch.channels_last)
    made = Trainer(net, rule, Classify(10), {"name": "adamw", "lr": 1e-3}, clip=1.0, compute=precision)
    if subject.endswith("side by side"):  # as on a GPU
        made.rule.side_by_side = True
    return made


def main() -> None:
    """Measure all subjects and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    x = torch.randn(options.batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    batch = Batch(x, torch.randint(10, (options.batch,)))
    found = {(s, p): trainer(s, p, options.blocks) for s in SUBJECTS for p in PRECISIONS}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in found}
    for round_ in range(options.rounds + 1):
        for key, subject in found.items():
            before = time.thread_time()
            subject.step(batch)
            if round_:
                seconds[key].append((time.thread_time() - before) * 1000 / options.batch)
    title = f"T {options.blocks}, batch {options.batch}, {options.rounds} rounds, one thread, torch {torch.__version__}"
    table = Table(title=title)
    for heading in ("rule", "s per 1,000, float32", "ratio", "bfloat16", "ratio", "MB", "with gradients"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for subject in SUBJECTS:
        cells = []
        for precision in PRECISIONS:
            own, base = (statistics.median(seconds[s, precision]) for s in (subject, "backprop, one block"))
            cells += [f"{own:.2f}", f"{own / base:.2f}"]
        step = found[subject, "float32"]
        memory = [step.step_memory(batch, with_gradients=whole) / 1e6 for whole in (False, True)]
        table.add_row(subject, *cells, *(f"{megabytes:.0f}" for megabytes in memory))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
