"""The parts of `device.py`: their subjects, their nets, and what each is compared with."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from clock import Call, Timings, captured, measure, wait
from gradients import DRAWN_OTHERWISE, check
from torch import nn
from torch.nn import functional as F

from bpfree.nets import NETS, Denoiser, mlp
from bpfree.noise import Clock, Noise, StepNoise, counts
from bpfree.population import EvaluatorName
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

CLASSES = 10
STEP_RULES = ["backprop", "dfa", "drtp", "local", "mono_forward", "pred", "predsim"]
EAGER, GRAPH = "torch eager", "torch graph"
ONE_BLOCK, PLAIN, PLAIN_GRAPH = "backprop, one block", "plain inference", "plain inference, graph"
_LARGE = {"dfa": 0.88, "drtp": 0.88, "local": 0.88, "mono_forward": 0.88}
TARGETS: dict[str, dict[str, float]] = {
    "mlp_small, float32": {"dfa": 1.6, "drtp": 1.6, "local": 1.6, "mono_forward": 1.6, "pred": 1.6, "predsim": 2.5},
    "mlp_large, bfloat16": _LARGE,
    "vgg_128, bfloat16": {"dfa": 1.0, "drtp": 1.0, "mono_forward": 1.0, "predsim": 2.3},
    "vgg_1024, bfloat16": _LARGE,
    "noprop, float32": {"noprop_dt, trunk shared": 1.5, "noprop_dt, trunk local": 1.3},
    "noprop, bfloat16": {"noprop_dt, trunk shared": 1.5, "noprop_dt, trunk local": 1.3},
    "population, population 1024": {"eggroll, auto, graph": 1.3},
    "population, population 4096": {"eggroll, auto, graph": 1.3},
}
"""By the first words of a table, what we aim at: the highest ratio of a subject to the first that it stands beside."""


class Scene(NamedTuple):
    """The options that all parts share.

    Attributes:
        device: the device that everything runs on.
        quick: True if everything is tiny.
        groups: number of groups of calls for each subject.
        rules: the rules in the tables of steps.
        options: options for every trainer.
    """

    device: torch.device
    quick: bool
    groups: int
    rules: list[str]
    options: dict[str, Any]


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
        seconds: time limit, after which nothing new begins.
        run: makes the tables within the limit; a table is a dict by title, then by subject.
    """

    seconds: float
    run: Callable[[Scene, float], dict[str, dict[str, Any]]]


class Workload(NamedTuple):
    """A net and the batch of one step; `--quick` uses a smaller batch."""

    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]
    small_shape: tuple[int, ...]
    batch: int
    precisions: tuple[str, ...]


def _small_mlp(quick: bool) -> nn.Module:
    return mlp(784, CLASSES, hidden=[20 if quick else 1000] * 3, activation="tanh")


def _large_mlp(quick: bool) -> nn.Module:
    width = 32 if quick else 4096
    return mlp(width, CLASSES, hidden=[width] * 8, activation="relu")


def _vgg(quick: bool) -> nn.Module:
    shape = (3, 16, 16) if quick else (3, 32, 32)
    options = {"scale": 0.1, "hidden": 32} if quick else {}
    return NETS["vgg8b"](shape, CLASSES, **options)


WORKLOADS = {
    "mlp_small": Workload(_small_mlp, (784,), (784,), 128, ("float32",)),
    "mlp_large": Workload(_large_mlp, (4096,), (32,), 4096, ("float32", "bfloat16")),
    "vgg_128": Workload(_vgg, (3, 32, 32), (3, 16, 16), 128, ("float32", "bfloat16")),
    "vgg_1024": Workload(_vgg, (3, 32, 32), (3, 16, 16), 1024, ("bfloat16",)),
}


def correct(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """Relative errors of all rules' gradients; raises nothing, the table says what is wrong."""
    end = time.perf_counter() + seconds
    rows: dict[str, Any] = {}
    names = ["backprop", "noprop_dt", "eggroll"] if scene.quick else list(RULES)
    for name in names:
        if name in DRAWN_OTHERWISE and scene.device.type != "cpu":
            continue
        if time.perf_counter() > end:
            rows[name] = {"failed": "no time was left"}
            continue
        try:
            rows |= {f"{e.rule}, {e.net}": {**e._asdict(), "right": e.right} for e in check(name, scene.device)}
        except Exception as error:  # the other rules are still to be compared
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {"gradients beside float64 on the CPU": rows}


def steps(workload: Workload) -> Callable[[Scene, float], dict[str, dict[str, Any]]]:
    """A part that times a step of each rule on the workload."""

    def run(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
        tables = {}
        shape, samples = (workload.small_shape, 8) if scene.quick else (workload.shape, workload.batch)
        batch = random_batch(scene, samples, shape)
        for precision in workload.precisions:
            net = lambda: placed(workload.make(scene.quick), scene.device)  # noqa: E731
            subjects = {
                EAGER: lambda net=net, precision=precision: torch_step(net(), batch, precision),
                GRAPH: lambda net=net, precision=precision: captured(torch_step(net(), batch, precision)),
                **{
                    rule: lambda rule=rule, net=net, precision=precision: rule_step(
                        scene, net(), rule, batch, precision
                    )
                    for rule in scene.rules
                },
            }
            if scene.device.type != "cuda":
                del subjects[GRAPH]
            share = seconds / len(workload.precisions)
            found = measure(subjects, scene.device, groups=scene.groups, seconds=share)
            tables[f"{precision}, batch {samples}"] = rows_of(found, [GRAPH, EAGER])
            clear(scene.device)
        return tables

    return run


def noprop(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """A step of NoProp on the paper's convolutional block, beside backprop on one block."""
    blocks = 2 if scene.quick else 10
    batch = images(scene)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        ONE_BLOCK: ("backprop", {"blocks": 1}),
        "noprop_dt, trunk shared": ("noprop_dt", {"blocks": blocks, "trunk": "shared"}),
        "noprop_dt, trunk local": ("noprop_dt", {"blocks": blocks, "trunk": "local"}),
        "noprop_dt, trunk own": ("noprop_dt", {"blocks": blocks, "trunk": "own"}),
        "noprop_fm": ("noprop_fm", {"blocks": 1, "head": {"timed": True}}),
    }
    tables = {}
    for precision in ("float32", "bfloat16"):
        subjects = {
            name: lambda kind=kind, precision=precision: denoiser_step(scene, batch, *kind, precision)
            for name, kind in kinds.items()
        }
        found = measure(subjects, scene.device, groups=scene.groups, seconds=seconds / 2)
        tables[f"{precision}, T {blocks}, batch {len(batch.y)}"] = rows_of(found, [ONE_BLOCK])
        clear(scene.device)
    return tables


def population(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """A generation of a population on MLP 784-64-10, beside plain inference of as many samples, and JAX."""
    tables = {}
    sizes = (4, 8) if scene.quick else (64, 1024, 4096)
    batch = images(scene)
    known: dict[str, float] = {}  # ms of a generation, a member
    for size in sizes:
        subjects = generations(scene, batch, size)
        slow = [name for name, ms in known.items() if ms * size > 1e3 * seconds / 60]
        found = measure(
            {name: make for name, make in subjects.items() if name not in slow},
            scene.device,
            groups=scene.groups,
            seconds=seconds / len(sizes),
        )
        found.failures.update({name: f"left out: some {known[name] * size:.0f} ms" for name in slow})
        known |= {name: timing.ms / size for name, timing in found.timings.items()}
        tables[f"population {size}, batch {len(batch.y)}"] = rows_of(found, [PLAIN_GRAPH, PLAIN])
        clear(scene.device)
    for rows, peer in zip(tables.values(), jax_rows(batch, sizes), strict=True):
        rows["JAX, OpenES"] = peer
    return tables


def jax_rows(batch: Batch, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for each population: JAX in a process of its own, after ours."""
    if find_spec("jax") is None or batch.device.type == "cpu":
        return [{"failed": "JAX is not installed, or there is no GPU"} for _ in sizes]
    command = [sys.executable, str(Path(__file__).with_name("generation_jax.py")), str(len(batch.y)), *map(str, sizes)]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else it would take most of the memory
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=True)
        return [{"ms": ms} for ms in json.loads(done.stdout.splitlines()[-1]).values()]
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        told = getattr(error, "stderr", None) or error
        return [{"failed": f"JAX: {' '.join(str(told).split())[-200:]}"} for _ in sizes]


def generations(scene: Scene, batch: Batch, size: int) -> dict[str, Callable[[], Call]]:
    """Return, by name, functions that make a generation of `size` members."""
    net = lambda: member(scene, batch)  # noqa: E731
    subjects: dict[str, Callable[[], Call]] = {PLAIN: lambda: inference(net(), batch, size)}
    if scene.device.type == "cuda":
        subjects[PLAIN_GRAPH] = lambda: captured(inference(net(), batch, size))
    for rule in ("eggroll", "es"):
        for evaluator in ("auto", *get_args(EvaluatorName)):
            if evaluator != "in_place" and (rule, evaluator) != ("es", "lowrank"):
                subjects[f"{rule}, {evaluator}"] = lambda rule=rule, evaluator=evaluator: generation(
                    net(), batch, rule, evaluator, size
                )
        if scene.device.type == "cuda":
            subjects[f"{rule}, auto, graph"] = lambda rule=rule: captured(generation(net(), batch, rule, "auto", size))
    return subjects


def random_batch(scene: Scene, samples: int, shape: tuple[int, ...]) -> Batch:
    """Random samples and labels on the device."""
    torch.manual_seed(0)
    x = torch.randn(samples, *shape, device=scene.device)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    return Batch(x, torch.randint(CLASSES, (samples,), device=scene.device))


def images(scene: Scene) -> Batch:
    """A batch of random images of MNIST's size."""
    return random_batch(scene, 8, (1, 8, 8)) if scene.quick else random_batch(scene, 256, (1, 28, 28))


def member(scene: Scene, batch: Batch) -> nn.Module:
    """Return the net of a population: MLP 784-64-10."""
    return placed(mlp(batch.tensor.shape[1:], CLASSES, hidden=[64]), scene.device)


def placed(net: nn.Module, device: torch.device) -> nn.Module:
    """Return the net on the device, with convolutions in channels-last format."""
    return net.to(device).to(memory_format=torch.channels_last)


def torch_step(net: nn.Module, batch: Batch, precision: str) -> Call:
    """Return a step of backprop in plain torch, with the default optimiser of bpfree."""
    graphed = batch.device.type == "cuda"
    optimizer = torch.optim.Adam(net.parameters(), fused=True, capturable=graphed)
    rounded = precision == "bfloat16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=rounded, cache_enabled=False):
            loss = F.cross_entropy(net(batch.x), batch.y)
        loss.backward()
        optimizer.step()

    return step


def rule_step(scene: Scene, net: nn.Module, rule: str, batch: Batch, precision: str, **options: Any) -> Call:
    """Return a step of the trainer of bpfree."""
    trainer = Trainer(net, rule, Classify(CLASSES), compute=precision, **{**options, **scene.options})
    return lambda: trainer.step(batch)


def denoiser_step(scene: Scene, batch: Batch, rule: str, options: dict[str, Any], precision: str) -> Call:
    """A step on the paper's convolutional block, with batch norm after each convolution."""
    wide = {"width": 16 if scene.quick else 256, "backbone": {"name": "conv", "norm": True}}
    net = placed(Denoiser(batch.tensor.shape[1:], CLASSES, **wide, **options), scene.device)
    return rule_step(scene, net, rule, batch, precision, optimizer={"name": "adamw", "lr": 1e-3}, clip=1.0)


def inference(net: nn.Module, batch: Batch, size: int) -> Call:
    """Return plain inference on the samples of all members at once, without noise and without losses."""
    many = batch.tensor.repeat(size, 1, 1, 1)

    @torch.no_grad()
    def run() -> object:
        return net(many)

    return run


def generation(net: nn.Module, batch: Batch, rule_name: str, evaluator: str, size: int) -> Call:
    """Return one generation of a rule of bpfree: noise, scores and gradients. On a GPU it can be captured."""
    rule, task = RULES[rule_name](population=size, evaluator=evaluator), Classify(CLASSES)
    rule.bind(net, task, batch)
    rule.to(batch.device)
    clock = Clock(batch.device)
    noise = StepNoise(0, clock=clock) if counts(batch.device) else Noise(0, 0)

    def run() -> object:
        for p in net.parameters():
            p.grad = None
        clock.tensor += 1  # not by the host, so that each replay draws new noise
        return rule.gradients(net, task, batch, noise)

    run()  # chooses the evaluator
    clock.still = True  # its net draws no numbers
    return run


def rows_of(measured: Timings, bases: list[str]) -> dict[str, Any]:
    """Return a row for each subject, with its ratio to the subjects that it is compared with."""
    rows: dict[str, Any] = {}
    for name, timing in measured.timings.items():
        ratios = {f"of {base}": timing.ms / measured.timings[base].ms for base in bases if base in measured.timings}
        rows[name] = timing._asdict() | ratios
    return rows | {name: {"failed": why} for name, why in measured.failures.items()}


def clear(device: torch.device) -> None:
    """Free memory that is no longer used, including the pools of CUDA graphs."""
    wait(device)
    gc.collect()  # trainers and their hooks hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


SECONDS = {"mlp_small": 30, "mlp_large": 50, "vgg_128": 50, "vgg_1024": 40}
PARTS = {
    "correct": Part(50, correct),
    **{name: Part(SECONDS[name], steps(workload)) for name, workload in WORKLOADS.items()},
    "noprop": Part(50, noprop),
    "population": Part(75, population),
}
