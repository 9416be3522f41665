"""A part of `device.py`: the share of an epoch that is not steps, with batches from the device and from the host.

An epoch of `Trainer.fit` stands beside as many steps on one batch, and beside the same batches without any step. What
`fit` takes beyond the steps is the loop: batches that are gathered, augmented and scaled, and losses that are read.
"""

from typing import Any

import torch
from clock import Call, measure
from device_parts import CLASSES, WORKLOADS, Scene, clear, placed, rows_of

from bpfree.data import Augment, Batches, Dataset, Labels, Preprocess, Split
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer

STEPS = "steps alone"
_RULES = ("backprop", "dfa")
_LOOPS = (  # workload, precision, augmentation, steps of an epoch
    ("mlp_small", "float32", Augment(), 200),
    ("vgg_128", "bfloat16", Augment(shift=4, flip=True), 50),
)


def loop(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """Return, by workload and rule, the time of an epoch and its ratio to the steps alone, and samples per second."""
    tables: dict[str, dict[str, Any]] = {}
    rules = [rule for rule in _RULES if rule in scene.rules]
    for name, precision, augment, steps in _LOOPS:
        for rule in rules:
            steps = 4 if scene.quick else steps
            samples = steps * (8 if scene.quick else WORKLOADS[name].batch)
            subjects = _subjects(scene, name, precision, augment, rule, steps)
            share = seconds / (len(_LOOPS) * len(rules))
            found = measure(subjects, scene.device, groups=scene.groups, seconds=share)
            rows = rows_of(found, [STEPS])
            for row in rows.values():
                if "ms" in row:
                    row["samples/s"] = 1e3 * samples / row["ms"]
            tables[f"{name}, {precision}, {rule}, an epoch of {steps} steps"] = rows
            clear(scene.device)
    return tables


def _subjects(scene: Scene, name: str, precision: str, augment: Augment, rule: str, steps: int) -> dict[str, Any]:
    """Return, by name, functions that make a call of the length of an epoch."""
    work = WORKLOADS[name]
    shape, size = (work.small_shape, 8) if scene.quick else (work.shape, work.batch)

    def batches(*, on_host: bool = False) -> Batches:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (steps * size, *shape), dtype=torch.uint8, generator=generator)
        y = torch.randint(CLASSES, (len(x),), generator=generator)
        preprocess = Preprocess.of(Dataset("random", Split(x, y), None, Labels(CLASSES)), Split(x, y))
        made = Batches(Split(x, y), preprocess, size, device=scene.device, augment=augment, seed=0)
        made.x = x if on_host else made.x
        return made

    def trainer() -> Trainer:
        net = placed(work.make(scene.quick), scene.device)
        return Trainer(net, rule, Classify(CLASSES), compute=precision, **scene.options)

    subjects = {
        STEPS: lambda: _same_batch(trainer(), batches(), steps),
        "Trainer.fit": lambda: _fit(trainer(), batches()),
        "data alone": lambda: _all_batches(batches()),
    }
    if scene.device.type != "cpu":
        subjects["Trainer.fit, from the host"] = lambda: _fit(trainer(), batches(on_host=True))
        subjects["data alone, from the host"] = lambda: _all_batches(batches(on_host=True))
    return subjects


def _same_batch(trainer: Trainer, batches: Batches, steps: int) -> Call:
    batch = next(batches.epoch())

    def run() -> None:
        for _ in range(steps):
            trainer.step(batch)

    return run


def _fit(trainer: Trainer, batches: Batches) -> Call:
    def run() -> None:
        trainer.fit(batches, trainer.progress.step // len(batches) + 1)

    return run


def _all_batches(batches: Batches) -> Call:
    def run() -> None:
        for _ in batches.epoch():
            pass

    return run
