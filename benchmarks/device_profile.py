"""The last part of `device.py`: the kernels of one step and their time, to explain how long a step takes.

A step whose kernels are busy for much less than it takes waits for launches; one that is busy all the time does more
work than it must. The profiler may slow down what runs after it, so this part comes last.
"""

import time
from typing import Any

import torch
from clock import Call, wait
from device_parts import (
    EAGER,
    WORKLOADS,
    Scene,
    clear,
    denoiser_step,
    generation,
    images,
    member,
    placed,
    random_batch,
    rule_step,
    torch_step,
)
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

_SHOWN = 3  # kernels, those that take longest
_PROFILED = (("mlp_small", "float32"), ("vgg_128", "bfloat16"))


def profile(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """Return, by table and subject: kernels of a step, milliseconds in which they were busy, and the longest ones."""
    end = time.perf_counter() + seconds
    tables: dict[str, dict[str, Any]] = {}
    for title, subjects in profiled_subjects(scene).items():
        tables[title] = {}
        for name, make in subjects.items():
            if time.perf_counter() > end:
                tables[title][name] = {"failed": "no time was left"}
                continue
            try:
                tables[title][name] = kernels(make(), scene.device)
            except Exception as error:  # the others are still to be profiled
                tables[title][name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        clear(scene.device)
    return tables


def profiled_subjects(scene: Scene) -> dict[str, dict[str, Any]]:
    """Return, by table and name, functions that make the step."""
    tables: dict[str, dict[str, Any]] = {}
    for name, precision in _PROFILED:
        work = WORKLOADS[name]
        shape, samples = (work.small_shape, 8) if scene.quick else (work.shape, work.batch)
        x = random_batch(scene, samples, shape)

        def make(rule: str, work: Any = work, batch: Any = x, precision: str = precision) -> Call:
            net = placed(work.make(scene.quick), scene.device)
            return torch_step(net, batch, precision) if rule == EAGER else rule_step(scene, net, rule, batch, precision)

        names = [EAGER, *scene.rules]
        tables[f"{name}, {precision}"] = {rule: lambda rule=rule, make=make: make(rule) for rule in names}
    batch = images(scene)
    options = {"blocks": 2 if scene.quick else 10, "trunk": "shared"}
    size = 8 if scene.quick else 1024
    tables["noprop and a population"] = {
        "noprop_dt, trunk shared": lambda: denoiser_step(scene, batch, "noprop_dt", options, "float32"),
        f"eggroll, auto, {size} members": lambda: generation(member(scene, batch), batch, "eggroll", "auto", size),
    }
    return tables


def kernels(call: Call, device: torch.device) -> dict[str, Any]:
    """Return the profile of one call after a warm-up: kernels on a GPU, operations of torch on a CPU."""
    for _ in range(4):
        call()
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    taken = time.perf_counter() - start
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        wait(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spent: dict[str, float] = {}
    count = 0
    for event in profiler.events():
        if event.device_type == kind and "#" not in event.name:  # the name of a whole step of an optimiser has one
            count += 1
            own = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            spent[event.name] = spent.get(event.name, 0.0) + own
    longest = sorted(spent, key=lambda name: -spent[name])[:_SHOWN]
    top = "  " + "; ".join(f"{spent[name] / 1e3:.3f} {name[:60]}" for name in longest)
    return {"ms": 1e3 * taken, "kernels": count, "busy ms": sum(spent.values()) / 1e3, "longest": top}
