"""A clock for benchmarks: wall milliseconds and peak memory of calls that take turns on a device; CUDA graphs."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
_WARM_UP = 4  # calls before the first that counts; a captured step needs some to settle
_GROUP = 0.03  # seconds that a group of calls is to take, so that the clock and the wait for the device do not count
_MOST = 200  # calls in a group


class Timing(NamedTuple):
    """The time and memory of one subject.

    Attributes:
        ms: milliseconds of one call; the median over the groups.
        low, high: milliseconds of one call in the fastest and in the slowest group.
        groups: number of groups that were timed.
        peak_mb: peak memory of tensors during one call, without the tensors that existed before, in MB; None on a CPU.
    """

    ms: float
    low: float
    high: float
    groups: int
    peak_mb: float | None


class Timings(NamedTuple):
    """The timings by subject, and the reason for each subject that has none."""

    timings: dict[str, Timing]
    failures: dict[str, str]


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def measure(subjects: dict[str, Callable[[], Call]], device: torch.device, *, groups: int, seconds: float) -> Timings:
    """Time subjects in alternating groups of calls, so that a machine that slows down slows all of them.

    Args:
        subjects: by name, a function that makes the call to be timed.
        device: the device that they run on.
        groups: number of groups for each subject, if the time is sufficient.
        seconds: time limit. After it no new subject and no new round begins. A subject that fails is left out, and the
            result says why.
    """
    end = time.perf_counter() + seconds
    failures: dict[str, str] = {}
    calls: dict[str, Call] = {}
    sizes: dict[str, int] = {}
    peaks: dict[str, float | None] = {}
    for name, make in subjects.items():
        if time.perf_counter() > end:
            failures[name] = "no time was left"
            continue
        try:
            call = make()
            for _ in range(_WARM_UP - 1):
                call()
            peaks[name] = peak_mb(call, device)
            once = _seconds(call, 1, device)
        except Exception as error:  # of a rule or a peer that cannot do this: the others are still to be measured
            failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        calls[name], sizes[name] = call, min(max(int(_GROUP / once), 1), _MOST)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(groups):
        if round_ and time.perf_counter() > end:
            break
        for name, call in calls.items():
            spent[name].append(1e3 * _seconds(call, sizes[name], device))
    timings = {
        name: Timing(statistics.median(taken), min(taken), max(taken), len(taken), peaks[name])
        for name, taken in spent.items()
    }
    return Timings(timings, failures)


def _seconds(call: Call, times: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - start) / times


def peak_mb(call: Call, device: torch.device) -> float | None:
    """Return the peak memory of tensors in a call in MB, without tensors that existed before; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def captured(call: Call) -> Call:
    """Return the call as a CUDA graph: captured once, after a warm-up, then replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
