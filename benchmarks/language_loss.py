"""The memory and time of the loss of the task `language` and of its gradient, beside torch's own cross-entropy.

    python benchmarks/language_loss.py bpfree
    python benchmarks/language_loss.py torch

Each call is one process, since the peak of a process never falls. One thread, float32.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from bpfree.tasks.cross_entropy import summed_cross_entropy

TOKENS = VOCABULARY = 8192


def main() -> None:
    """Print the peak of memory beyond the logits, in MiB, and the CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loss", choices=("bpfree", "torch"))
    loss = parser.parse_args().loss
    torch.set_num_threads(1)
    logits = torch.randn(TOKENS, VOCABULARY, requires_grad=True)
    y = torch.randint(VOCABULARY, (TOKENS,))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before, started = pages * resource.getpagesize() / 2**20, time.process_time()
    total = summed_cross_entropy(logits, y, -100) if loss == "bpfree" else F.cross_entropy(logits, y, reduction="sum")
    total.backward()
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    print(f"{loss}: {peak:.0f} MiB beyond the {logits.nbytes >> 20} MiB of the logits, {seconds:.2f} CPU s")


if __name__ == "__main__":
    main()
