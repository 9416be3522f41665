"""Peak memory of one training step by depth, in MB: activations alone, with the gradients, and growth of the process.

    python benchmarks/memory.py [--width 256] [--batch 4096] [--depths 4 8 16 32] [--rules dfa "dfa memory=flat" ...]
    python benchmarks/memory.py --sequence 512 --batch 2 --depths 3 6 12 --processes 0 [--rules "mono_forward taps=3"]

An MLP of `depth` hidden layers of equal width; activations [batch, width] are what could grow. With `--sequence T` the
net is a decoder of `depth` blocks that predicts bytes, and activations are [batch, T, width]; `taps=3` cuts it into 4
segments. The first two numbers are bytes at torch's allocator (CPU: its profiler; CUDA: its statistics), so one run is
exact and has no spread. The floor for any rule is a few activations: a layer's input, its output, and one gradient of
that size. Gradients are as large as the parameters and grow with depth for every rule, unless each is used up and freed
at once (`update=fused`); backprop's come into being while activations go, so its total is less than the sum. Parameters
and optimiser state are not counted.

The third number is how much the peak of the process's resident memory grows over seven steps, each time in a new
process with the settings of bpfree's commands (with `--library` without them). The optimiser is SGD, which has no
state; with `--optimizer adamw` the bytes of its state are printed below the table. A training of a tiny net comes
first, so that what torch sets up once does not count. It varies by one or two activations from process to process; the
table has the median of `--processes`.
"""

import argparse
import os
import statistics
import subprocess
import sys
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from subjects import CLASSES, trainers

from bpfree.memory import peak_process_memory
from bpfree.nets import mlp, transformer
from bpfree.tasks import Language
from bpfree.training.allocator import keep_freed_memory, without_caches
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

RULES = [
    *("backprop", "checkpointed", "fa", "dfa", "dfa memory=flat", "dfa memory=flat update=fused"),
    *("drtp", "drtp update=fused", "local", "mono_forward", "mono_forward update=fused", "pred", "predsim"),
    *("forward_forward", "recombine population=4", "biotorch fa", "biotorch dfa"),
]
STEPS, BYTES = 7, 256


def subject(name: str, depth: int, options: argparse.Namespace) -> tuple[Trainer, Batch] | None:
    """Return a trainer and a batch of random samples; None if the subject is not installed."""
    width, samples, device, steps = options.width, options.batch, options.device, options.sequence
    if steps:
        blocks = {"width": width, "depth": depth, "heads": width // 64 or 1, "vocabulary": BYTES, "each_step": True}
        x = torch.randint(BYTES, (samples, steps), device=device)
        made = trainers(
            [name],
            lambda: transformer((steps,), BYTES, **blocks).to(device),
            optimizer=options.optimizer,
            task=Language(BYTES),
        )
        return (made[name], Batch(x, x)) if made else None
    hidden = [width] * depth
    net = partial(mlp, width, CLASSES, hidden=hidden, activation="tanh")
    made = trainers([name], lambda: net().to(device), optimizer=options.optimizer)
    x = torch.randn(samples, width, device=device)
    batch = Batch(x, torch.zeros(samples, dtype=torch.int64, device=device))
    return (made[name], batch) if made else None


def grow(name: str, depth: int, options: argparse.Namespace) -> None:
    """Print the bytes that this process grows by over some steps."""
    tiny = argparse.Namespace(**{**vars(options), "batch": 8, "width": 16, "sequence": min(16, options.sequence)})
    if (warm_up := subject(name, 2, tiny)) is None:
        return
    trainer, batch = warm_up
    trainer.step(batch)
    trainer, batch = subject(name, depth, options) or warm_up
    with peak_process_memory(options.device) as memory:
        for _ in range(STEPS):
            trainer.step(batch)
        print(memory().growth)


def growth(name: str, depth: int, options: argparse.Namespace) -> float:
    """Return the bytes that a new process grows by, the median of some."""
    same = ("width", "batch", "device", "sequence", "optimizer")
    shape = [f"--{key}={getattr(options, key)}" for key in same]
    command = [sys.executable, __file__, "--rules", name, "--depths", str(depth), *shape, "--here"]
    command += ["--library"] if options.library else []
    environment = os.environ | ({} if options.library else without_caches())
    runs = [
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        for _ in range(options.processes)
    ]
    return statistics.median(int(run.stdout) for run in runs)


def cell(name: str, depth: int, options: argparse.Namespace) -> str | None:
    """Return the numbers of a rule and a depth; None if the subject is not installed."""
    made = subject(name, depth, options)
    if made is None:
        return None
    trainer, batch = made
    counts = [float(trainer.step_memory(batch, with_gradients=False)), float(trainer.step_memory(batch))]
    if options.processes:
        counts.append(growth(name, depth, options))
    return " / ".join(f"{count / 1e6:.1f}" for count in counts)


def print_state(trainer: Trainer, batch: Batch) -> None:
    """Print the bytes of the parameters and of the optimiser's state, which every rule has."""
    trainer.step(batch)
    weights = sum(p.nbytes for p in trainer.net.parameters())
    state = sum(t.nbytes for of_one in trainer.optimizer.state.values() for t in of_one.values())
    print(f"parameters of the net {weights / 1e6:.1f} MB, state of the optimiser {state / 1e6:.1f} MB")


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--sequence", type=int, default=0, help="steps of a decoder; 0 for an MLP")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=3, help="0 leaves the third number out")
    parser.add_argument("--library", action="store_true", help="without the settings of bpfree's commands")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the processes that are measured
    return parser.parse_args()


def main() -> None:
    """Measure the peaks and print the table."""
    options = parsed()
    torch.set_num_threads(1)
    if options.here:
        if not options.library:
            keep_freed_memory()
        grow(options.rules[0], options.depths[0], options)
        return
    one = options.batch * (options.sequence or 1) * options.width * 4 / 1e6
    titles = f"MB of activations / with gradients{' / growth of the process' if options.processes else ''}"
    table = Table(title=f"{titles}. One activation: {one:.1f} MB. torch {torch.__version__}")
    table.add_column("rule")
    for depth in options.depths:
        table.add_column(f"depth {depth}", justify="right")
    for name in options.rules:
        cells = [cell(name, depth, options) for depth in options.depths]
        if None not in cells:
            table.add_row(name, *cells)
    Console(width=120).print(table)
    if options.optimizer != "sgd" and (made := subject(options.rules[0], options.depths[-1], options)):
        print_state(*made)


if __name__ == "__main__":
    main()
