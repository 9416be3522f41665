"""What ran a training."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_at_once() -> int:
    """How many trainings of one thread each go well side by side: one for each core, or one on a GPU."""
    return 1 if torch.cuda.is_available() or torch.backends.mps.is_available() else cores()
