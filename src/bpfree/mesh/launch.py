"""The processes that torchrun started: how many they are, and how they find each other."""

import atexit
import os

import torch
from torch import distributed

from bpfree.mesh.job import meeting_store
from bpfree.screen.first import LAUNCHED


def launched() -> int:
    """Return how many processes torchrun started for this training; 1 without torchrun."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHED) else 1


def rank_of_process() -> int:
    """Return the number of this process, from 0; 0 without torchrun."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ["RANK"]) if launched() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() > 1 else 0


def processes_here() -> int:
    """Return how many processes torchrun started on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() > 1 else 1


def join() -> None:
    """Connect the processes that torchrun started; without torchrun, or at a second call, do nothing."""
    if launched() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank, size = rank_of_process(), launched()
    if (store := meeting_store(rank)) is None:
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
