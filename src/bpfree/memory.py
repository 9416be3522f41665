"""Measure the memory that training takes."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

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
    # torch.profiler would do the same, but imports torch's compilers, which takes seconds.
    with _quiet_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
        step()
    in_use = peak = 0
    events = (e for e in profiler.kineto_results.events() if e.name() == "[memory]")
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


class ProcessMemory(NamedTuple):
    """The memory that a process takes, in bytes; None where the system does not report it.

    Attributes:
        peak: the highest since the measurement began. On a CPU the resident memory of the process, including the
            interpreter and libraries; on a GPU what torch's allocator gave to tensors.
        growth: the highest minus what the process had when the measurement began, with the memory that an allocator
            holds and cannot use. On a CPU resident memory without pages of files, such as the code of libraries that is
            used for the first time; on a GPU what torch's allocator reserved.
    """

    peak: int | None
    growth: int | None


@contextmanager
def peak_process_memory(device: torch.device | str = "cpu") -> Iterator[Callable[[], ProcessMemory]]:
    """Give a function that returns the memory of this process since the block began.

    Args:
        device: where the training runs.

    Yields:
        The function. On systems other than Linux a peak cannot be reset, so it counts from the start of the process.
        `growth` is then too small if the process had a higher peak before.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        reserved = torch.cuda.memory_reserved(device)
        yield lambda: ProcessMemory(
            torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device) - reserved
        )
        return
    _give_back_freed_memory()
    with suppress(OSError):  # a container may forbid it: the peak then counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets VmHWM, see proc(5)
    before, files_before = _resident_peak(), _resident_files()

    def measure() -> ProcessMemory:
        peak, files = _resident_peak(), _resident_files()
        if peak is None or before is None:
            return ProcessMemory(peak, None)
        return ProcessMemory(peak, max(0, peak - before - max(0, files - files_before)))

    yield measure


def _give_back_freed_memory() -> None:
    """Let glibc give freed memory back to the system. A training that used it again would seem to take nothing."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl does not have it
        if trim is not None:
            trim(0)


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None for the CPU, and where torch cannot tell."""
    if device.type in ("cpu", "meta"):
        return None
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else int(ask(device)[0])


def peak_so_far(device: torch.device) -> int | None:
    """Return the peak memory in bytes since the last reset, or since the process started; None if unknown.

    Args:
        device: where the training runs.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def _resident_peak() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not report it."""
    peak = _of_status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, other systems KiB


def _resident_files() -> int:
    """Return the bytes of files in the resident memory of this process; 0 if the system does not report it."""
    return _of_status("RssFile") or 0


def _of_status(key: str) -> int | None:
    """Return a value of /proc/self/status in bytes; None on systems without it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
