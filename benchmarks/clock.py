"""Wall milliseconds of calls that take turns on a device, their peak memory, and calls captured as a CUDA graph."""

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
    """What the groups of a subject took.

    Attributes:
        ms: the median over the groups, of one call.
        low, high: of the fastest and the slowest group.
        groups: how many there were.
        peak_mb: the most memory of tensors that one call took beyond what was there before it; None on a CPU.
    """

    ms: float
    low: float
    high: float
    groups: int
    peak_mb: float | None


class Found(NamedTuple):
    """Timings by subject, in order, and why some subjects have none."""

    timings: dict[str, Timing]
    failures: dict[str, str]


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def measure(subjects: dict[str, Callable[[], Call]], device: torch.device, *, groups: int, seconds: float) -> Found:
    """Time subjects in alternating groups of calls, so that a machine that slows down slows all of them.

    Args:
        subjects: by name, what makes the call to be timed.
        device: on which they run.
        groups: how many for each subject, if there is time.
        seconds: after which no subject is begun that has not been, nor another round. A subject that fails is told of
            and left out.
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
    return Found(timings, failures)


def _seconds(call: Call, times: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - start) / times


def peak_mb(call: Call, device: torch.device) -> float | None:
    """Megabytes of tensors at the peak of a call beyond those that are there before; None on a CPU."""
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
    """The call as a CUDA graph: captured once, after a warm-up, and replayed."""
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
