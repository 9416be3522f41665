"""Peak memory of one training step by depth, in MB: activations alone, and with the gradients.

    python benchmarks/memory.py [--width 1024] [--batch 1024] [--depths 4 8 16 32]

An MLP of `depth` hidden layers of equal width; activations [batch, width] are what could grow. Bytes are counted at
torch's allocator (CPU: its profiler; CUDA: its statistics), so one run is exact and has no spread. The floor for any
rule is a few activations: a layer's input, its output, and one gradient of that size. Gradients are as large as the
parameters and grow with depth for every rule; backprop's come into being while activations go, so its total is less
than the sum. What `recombine` takes is copies of the parameters.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from bpfree.nets import mlp
from bpfree.rules import DFA, DRTP, FA, Backprop, MonoForward, Recombine
from bpfree.tasks import Classify
from bpfree.trainer import Trainer
from bpfree.types import Batch

RULES = {
    "backprop": Backprop,
    "fa": FA,
    "dfa (memory: fast)": DFA,
    "dfa (memory: flat)": lambda: DFA(memory="flat"),
    "drtp": DRTP,
    "mono_forward": MonoForward,
    "recombine": lambda: Recombine(population=4),
}


def peaks(make_rule, depth: int, width: int, batch_size: int, device: str) -> tuple[int, int]:
    """Peak bytes of a step: activations and temporaries, and the same with gradients."""
    net = mlp(width, 10, hidden=[width] * depth, activation="tanh").to(device)
    trainer = Trainer(net, make_rule(), Classify(10))
    x = torch.randn(batch_size, width, device=device)
    batch = Batch(x, torch.zeros(batch_size, dtype=torch.int64, device=device))
    return trainer.step_memory(batch, with_gradients=False), trainer.step_memory(batch)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    one = options.batch * options.width * 4 / 1e6
    table = Table(title=f"MB of activations / with gradients. One activation: {one:.1f} MB. torch {torch.__version__}")
    table.add_column("rule")
    for depth in options.depths:
        table.add_column(f"depth {depth}", justify="right")
    for name, make_rule in RULES.items():
        cells = [peaks(make_rule, depth, options.width, options.batch, options.device) for depth in options.depths]
        table.add_row(name, *(f"{alone / 1e6:.1f} / {whole / 1e6:.1f}" for alone, whole in cells))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
