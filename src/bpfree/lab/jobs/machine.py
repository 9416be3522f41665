"""The machine that trains: its processor, and how many trainings fit on it."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """Return the name of the processor, as "AMD EPYC 7763 64-Core Processor"; the architecture if it has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    # A container or `taskset` may allow fewer cores than `os.cpu_count` finds.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_at_once() -> int:
    """Return how many trainings to run at the same time: one for each core, or one if there is a GPU.

    Each training has one thread. Two trainings on one GPU would share its memory and slow each other down.
    """
    return 1 if torch.cuda.is_available() or torch.backends.mps.is_available() else cores()
