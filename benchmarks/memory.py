"""Peak memory of one training step by depth, in MB: activations alone, and with the gradients.

    python benchmarks/memory.py [--width 1024] [--batch 1024] [--depths 4 8 16 32] [--rules dfa "dfa memory=flat" ...]

An MLP of `depth` hidden layers of equal width; activations [batch, width] are what could grow. Bytes are counted at
torch's allocator (CPU: its profiler; CUDA: its statistics), so one run is exact and has no spread. The floor for any
rule is a few activations: a layer's input, its output, and one gradient of that size. Gradients are as large as the
parameters and grow with depth for every rule, unless each is used up and freed at once (`update=fused`); backprop's
come into being while activations go, so its total is less than the sum. Parameters and optimiser state are not counted.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from subjects import CLASSES, trainers

from bpfree.nets import mlp
from bpfree.types import Batch

RULES = [
    *("backprop", "checkpointed", "fa", "dfa", "dfa memory=flat", "dfa memory=flat update=fused"),
    *("drtp", "drtp update=fused", "local", "mono_forward", "mono_forward update=fused", "pred", "predsim"),
    *("forward_forward", "recombine population=4", "biotorch fa", "biotorch dfa"),
]


def peaks(name: str, depth: int, width: int, batch_size: int, device: str) -> tuple[int, int] | None:
    """Return the peak bytes of a step: activations and temporaries, and the same with gradients."""
    by_name = trainers([name], lambda: mlp(width, CLASSES, hidden=[width] * depth, activation="tanh").to(device))
    if not by_name:
        return None
    x = torch.randn(batch_size, width, device=device)
    batch = Batch(x, torch.zeros(batch_size, dtype=torch.int64, device=device))
    trainer = by_name[name]
    return trainer.step_memory(batch, with_gradients=False), trainer.step_memory(batch)


def main() -> None:
    """Measure the peaks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    one = options.batch * options.width * 4 / 1e6
    table = Table(title=f"MB of activations / with gradients. One activation: {one:.1f} MB. torch {torch.__version__}")
    table.add_column("rule")
    for depth in options.depths:
        table.add_column(f"depth {depth}", justify="right")
    for name in options.rules:
        cells = [peaks(name, depth, options.width, options.batch, options.device) for depth in options.depths]
        if None not in cells:
            table.add_row(name, *(f"{alone / 1e6:.1f} / {whole / 1e6:.1f}" for alone, whole in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
