"""Validation loss of a small decoder on the characters of tinyshakespeare after some steps, by one rule.

    python benchmarks/diffusion_blocks_text.py diffusion_blocks 100 PATH/tinyshakespeare.txt
    python benchmarks/diffusion_blocks_text.py backprop 100 PATH/tinyshakespeare.txt

For diffusion_blocks it prints three losses: at the end of inference, of block 1 alone at the highest noise, and of
block 1 with another text as its context.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bpfree import Trainer
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Language
from bpfree.types import Batch

CONTEXT, BATCH, JUDGED = 64, 32, 200
OPTIONS = {"blocks": 2, "noise": {"mean": 0.5}, "weighting": "equal", "experimental": True}


def windows(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of the context's length, and for each token the next one."""
    count = (len(tokens) - 1) // CONTEXT
    return tokens[: count * CONTEXT].view(count, -1), tokens[1 : count * CONTEXT + 1].view(count, -1)


def main(rule: str, steps: int, path: str) -> None:
    """Train and print the losses, in nats for each character."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = Path(path).read_text("utf-8")
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    cut = int(0.9 * len(tokens))
    x, y = windows(tokens[:cut])
    judged = Batch(*(part[:JUDGED] for part in windows(tokens[cut:])))
    net = NETS["transformer"]((CONTEXT,), len(characters), width=128, depth=4, heads=4, each_step=True)
    made = RULES[rule](**(OPTIONS if rule == "diffusion_blocks" else {}))
    schedule = {"name": "onecycle", "total_steps": steps}
    task = Language(len(characters))
    trainer = Trainer(net, made, task, {"name": "adamw", "lr": 2e-3}, schedule=schedule, clip=1.0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    for step in range(steps):
        rows = order[step * BATCH % (len(x) - BATCH) :][:BATCH]
        trainer.step(Batch(x[rows], y[rows]))
    print(f"{rule}: {steps} steps, {time.process_time() - start:.0f} CPU s")
    net.eval()

    def loss(answer: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            return float(task.loss(answer(judged.tensor), judged))

    print(f"loss {loss(trainer.predict):.3f}")
    if rule == "diffusion_blocks":
        print(f"block 1 {loss(lambda x: made.extra_outputs(net, x)['block1']):.3f}")
        print(f"block 1, other context {loss(lambda x: made.extra_outputs(net, x.flip(0))['block1']):.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
