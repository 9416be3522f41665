"""How much memory training takes, measured."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


def peak_step_memory(step: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors that `step` holds at once beyond those that are there before it.

    On a CPU every allocation of torch's allocator is followed by its profiler; on an accelerator its own counter is
    read. Activations, gradients and temporaries count; parameters, optimiser state and data that exist already do not.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        step()
        return 0
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    held = peak = 0
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Torch's profiler writes lines of its own to file descriptor 2, past Python and every log level."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the shell closed it
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def peak_process_memory(device: torch.device | str = "cpu") -> Iterator[Callable[[], int | None]]:
    """Gives a function that tells the peak memory in bytes since the block began.

    On a GPU it is that of torch's allocator; on a CPU the resident memory of the whole process, interpreter and
    libraries included. None where the system does not tell. Where a peak cannot be reset (not Linux) it is that of the
    process so far.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):  # else the peak covers the process from its start
        Path("/proc/self/clear_refs").write_text("5")
    yield _resident_peak


def peak_so_far(device: torch.device) -> int | None:
    """What `peak_process_memory` would tell, without a new beginning."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def _resident_peak() -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
