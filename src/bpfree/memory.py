"""Measure the memory that training takes."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


def peak_step_memory(step: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Return the peak memory of tensors that `step` makes, in bytes.

    Activations, gradients and temporaries count. Parameters, optimiser state and data that exist before do not.

    Args:
        step: is called once.
        device: where the tensors are.

    Returns:
        Bytes, exact: on a CPU torch's profiler reports each allocation, on a GPU torch's allocator counts them. 0 on
        other devices, which count nothing.

    Example:
        >>> peak_step_memory(lambda: torch.zeros(1000))
        4000
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
    in_use = peak = 0
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        in_use += event.nbytes()  # negative for memory that is freed
        peak = max(peak, in_use)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2 within the block.

    Torch's profiler writes lines there from C++, so neither `sys.stderr` nor a log level can stop them.
    """
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # a full disk or a closed pipe, which must not end a training
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
    """Give a function that returns the peak memory in bytes since the block began.

    On a GPU this is the memory of torch's allocator. On a CPU it is the resident memory of the whole process, including
    the interpreter and libraries.

    Args:
        device: where the training runs.

    Yields:
        The function. It returns None if the system does not report a peak. On systems other than Linux a peak cannot be
        reset, so it counts from the start of the process.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):  # a container may forbid it: the peak then counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets VmHWM, see proc(5)
    yield _resident_peak


def peak_so_far(device: torch.device) -> int | None:
    """Return the peak memory in bytes since the last reset, or since the process started; None if unknown.

    Args:
        device: where the training runs.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def _resident_peak() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not report it."""
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
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, other systems KiB
