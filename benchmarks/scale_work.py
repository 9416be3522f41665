"""The measured work of `scale.py`: processor seconds of each part of a net, and of the members of a population.

One process, one thread, processor seconds (other programs that share the machine do not count, but they still take room
in the caches). Subjects take turns, and a time is the median of the rounds.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scale_model import FLOAT, Cost, Part, Population
from scale_subjects import SUBJECTS, Subject, batch_of, trainer_of
from torch import nn

from bpfree.local.rule import LocalRule
from bpfree.population.rule import BlackBoxRule
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

LAYERED = ("small", "wide", "deep", "conv")
LOCAL = "mono_forward"
MEMBERS = {"es": "loop", "eggroll": "lowrank"}
FRACTIONS = (1, 2, 4, 8, 16)  # the batch is divided by them
Times = dict[str, list[float]]  # by name, the seconds in each round


def measured(rounds: int) -> dict[str, Any]:
    """Return the work of all subjects, ready for JSON.

    Args:
        rounds: how often each is timed.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {"parts": {}, "populations": {}}
    for name in LAYERED:
        found["parts"][name] = layered(SUBJECTS[name], rounds)
    found["parts"]["noprop"], found["parts"]["noprop_shared"] = denoising(rounds)
    for rule, evaluator in MEMBERS.items():
        found["populations"][rule] = population(SUBJECTS["small"], rule, evaluator, rounds)
    return found


def fitted(samples: list[float], seconds: list[float]) -> tuple[Cost, float]:
    """Return the cost that fits best, by relative errors, and the largest relative error."""
    x, y = np.array(samples), np.array(seconds)
    rows = np.stack([1 / y, x / y], axis=1)
    fixed, each = np.linalg.lstsq(rows, np.ones_like(y), rcond=None)[0]
    if fixed < 0:
        fixed, each = 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    if each < 0:
        fixed, each = float((1 / y).sum() / (1 / y**2).sum()), 0.0
    cost = Cost(float(fixed), float(each))
    return cost, max(abs(cost.of(a) / b - 1) for a, b in zip(samples, seconds, strict=True))


def layered(subject: Subject, rounds: int) -> dict[str, Any]:
    """Return the parts of a net that local rules cut in layers.

    Args:
        subject: the net.
        rounds: how often it is timed.
    """
    true, local = trainer_of(subject, "backprop"), trainer_of(subject, LOCAL)
    batches = [batch_of(subject, subject.batch // fraction) for fraction in FRACTIONS]
    local.bind(batches[0])
    true.bind(batches[0])
    assert isinstance(local.rule, LocalRule)
    taps = [segment.name for segment in local.rule.segments[:-1]]
    rows: dict[int, list[dict[str, list[float]]]] = {len(batch.y): [] for batch in batches}
    for round_ in range(rounds + 2):
        for batch in batches:
            both = {**_passes(true.net, taps, true.task, batch), "segments": _segments(local, batch)}
            both["update"] = [_update(true), _update(local)]
            if round_ > 1:
                rows[len(batch.y)].append(both)
    middle = {size: _medians(found) for size, found in rows.items()}
    widths = _features(true.net, taps, batches[-1])
    parts = []
    for index, segment in enumerate(local.rule.segments):
        weights = sum(true.net.get_parameter(name).numel() for name in segment.parameters) * FLOAT
        head = local.rule.head(index)
        times = {kind: [middle[size][kind][index] for size in middle] for kind in ("forward", "backward", "segments")}
        forward, backward, whole = (fitted(list(middle), seconds)[0] for seconds in times.values())
        learn = Cost(whole.fixed - forward.fixed, whole.sample - forward.sample)
        share = weights / (FLOAT * sum(p.numel() for p in true.net.parameters()))
        update = share * statistics.median(middle[size]["update"][0] for size in middle)
        of_head = FLOAT * sum(p.numel() for p in head.parameters()) if head else 0
        parts.append(Part(forward, backward, learn, update, weights, of_head, widths[index]))
    fit = max(
        abs(sum(p.forward.of(size) + p.backward.of(size) for p in parts) / sum(row["forward"] + row["backward"]) - 1)
        for size, row in middle.items()
    )
    spread = _spread([sum(row["forward"]) + sum(row["backward"]) for row in rows[subject.batch]])
    return {"parts": parts, "batch": subject.batch, "fit": fit, "spread": spread, "raw": middle}


def _passes(net: nn.Module, taps: list[str], task: Any, batch: Batch) -> dict[str, list[float]]:
    """Seconds of the forward and the backward pass of each part."""
    forth: list[float] = []
    back: list[float] = []

    def seen(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        forth.append(time.thread_time())
        out.register_hook(lambda _: back.append(time.thread_time()))

    hooks = [net.get_submodule(tap).register_forward_hook(seen) for tap in taps]
    net.zero_grad()
    start = time.thread_time()
    loss = task.loss(net(batch.x), batch)
    turn = time.thread_time()
    loss.backward()
    end = time.thread_time()
    for hook in hooks:
        hook.remove()
    return {"forward": _between([start, *forth, turn]), "backward": _between([turn, *back, end])[::-1]}


def _segments(trainer: Trainer, batch: Batch) -> list[float]:
    """Seconds of each segment of a local rule, with its forward pass."""
    done: list[float] = []
    rule = trainer.rule
    assert isinstance(rule, LocalRule)
    rule.segment_done = lambda index: done.append(time.thread_time())
    trainer.optimizer.zero_grad()
    start = time.thread_time()
    rule.gradients(trainer.net, trainer.task, batch, trainer.noise)
    rule.segment_done = None
    return _between([start, *done])


def _update(trainer: Trainer) -> float:
    start = time.thread_time()
    trainer.optimizer.step()
    return time.thread_time() - start


def _between(marks: list[float]) -> list[float]:
    return [end - start for start, end in pairwise(marks)]


def _medians(rows: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {
        kind: [statistics.median(values) for values in zip(*(row[kind] for row in rows), strict=True)]
        for kind in rows[0]
    }


def _spread(values: list[float]) -> list[float]:
    """The 10th and the 90th percentile, divided by the median."""
    middle = statistics.median(values)
    return [float(each) for each in np.percentile(values, [10, 90]) / middle]


def _features(net: nn.Module, taps: list[str], batch: Batch) -> list[int]:
    """Bytes of the output of each part for a sample; 0 for the last part, whose output stays where it is."""
    sizes: list[int] = []

    def seen(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        sizes.append(out[0].numel() * FLOAT)

    hooks = [net.get_submodule(tap).register_forward_hook(seen) for tap in taps]
    with torch.no_grad():
        net(batch.x)
    for hook in hooks:
        hook.remove()
    return [*sizes, 0]


def _steps(trainers: dict[str, Trainer], subjects: dict[str, Subject], rounds: int) -> Iterator[tuple[str, Any]]:
    """For each trainer, its seconds by batch size, and those of the optimiser."""
    found: dict[str, dict[int, list[float]]] = {name: {} for name in trainers}
    updates: Times = {name: [] for name in trainers}
    for round_ in range(rounds + 1):
        for name, trainer in trainers.items():
            for fraction in FRACTIONS[:3]:
                batch = batch_of(subjects[name], subjects[name].batch // fraction)
                start = time.thread_time()
                trainer.step(batch)  # in the memory order and the precision of a training
                taken = time.thread_time() - start
                if round_:
                    found[name].setdefault(len(batch.y), []).append(taken)
                    updates[name].append(_update(trainer))
    for name, by_size in found.items():
        sizes = list(by_size)
        update = statistics.median(updates[name])
        cost, error = fitted(sizes, [statistics.median(by_size[size]) - update for size in sizes])
        yield name, (cost, error, update, _spread(by_size[sizes[0]]))


def denoising(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the blocks of NoProp with ten trunks, and with one.

    A block is timed alone; a head without a trunk is a ninth of what a net with one trunk takes beyond it.
    """
    subjects = {name: SUBJECTS[name] for name in ("noprop_one", "noprop_shared")}
    trainers = {name: trainer_of(subject, "noprop_dt") for name, subject in subjects.items()}
    found = dict(_steps(trainers, subjects, rounds))
    (one, error, update, spread), (ten, error_ten, update_ten, _) = found["noprop_one"], found["noprop_shared"]
    nets = [trainers[name].net for name in subjects]
    weights = [FLOAT * sum(p.numel() for p in net.parameters()) for net in nets]
    with torch.no_grad():
        features = nets[0].trunks[0].eval()(batch_of(subjects["noprop_one"], 2).x)[0].numel() * FLOAT
    nothing = Cost(0.0, 0.0)
    block = Part(nothing, nothing, one, update, weights[0], 0, features)
    rest = Cost(max(0.0, ten.fixed - one.fixed) / 9, (ten.sample - one.sample) / 9)
    head = Part(nothing, nothing, rest, max(0.0, update_ten - update) / 9, (weights[1] - weights[0]) // 9, 0, features)
    about = {"batch": subjects["noprop_one"].batch, "spread": spread, "raw": {}}
    own = {"parts": [block] * 10, "fit": error, **about}
    return own, {"parts": [block] + [head] * 9, "fit": error_ten, **about}


def population(subject: Subject, name: str, evaluator: str, rounds: int) -> dict[str, Any]:
    """Return what the members of a rule cost on a net.

    Args:
        subject: the net.
        name: the rule.
        evaluator: that runs its members.
        rounds: how often it is timed.
    """
    few, many = 64, 256
    trainers = {p: trainer_of(subject, {"name": name, "population": p, "evaluator": evaluator}) for p in (few, many)}
    again: dict[int, list[float]] = {few: [], many: []}
    for members, trainer in trainers.items():
        assert isinstance(trainer.rule, BlackBoxRule)
        trainer.rule.learn = _noted(trainer.rule.learn, again[members])  # type: ignore[method-assign]
    sizes = [subject.batch, subject.batch // 4]
    whole: dict[tuple[int, int], list[float]] = {(p, b): [] for p in trainers for b in sizes}
    for round_ in range(rounds + 1):
        for (members, size), seconds in whole.items():
            batch, trainer = batch_of(subject, size), trainers[members]
            start = time.thread_time()
            trainer.step(batch)
            if round_:
                seconds.append(time.thread_time() - start)
    middle = {key: statistics.median(seconds) for key, seconds in whole.items()}
    drawn = {members: statistics.median(seconds[2:]) for members, seconds in again.items()}
    noise = (drawn[many] - drawn[few]) / (many - few)
    by_member = [(middle[many, b] - middle[few, b]) / (many - few) - noise for b in sizes]
    each = (by_member[0] - by_member[1]) / (sizes[0] - sizes[1])
    member = Cost(max(0.0, by_member[0] - each * sizes[0]), each)
    fixed = max(0.0, middle[few, sizes[0]] - few * (member.of(sizes[0]) + noise))
    return {
        "population": Population(member, noise, fixed),
        "batch": subject.batch,
        "spread": _spread(whole[many, sizes[0]]),
        "raw": {f"{members} members, {size} samples": seconds for (members, size), seconds in middle.items()},
    }


def _noted(call: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    def noting(*arguments: Any) -> None:
        start = time.thread_time()
        call(*arguments)
        seconds.append(time.thread_time() - start)

    return noting


def read(found: dict[str, Any]) -> tuple[dict[str, list[Part]], dict[str, Population]]:
    """Return the parts of each net and the populations, from JSON.

    Args:
        found: what `measured` returned, after JSON.
    """

    def part(values: list[Any]) -> Part:
        return Part(Cost(*values[0]), Cost(*values[1]), Cost(*values[2]), *values[3:])

    parts = {name: [part(values) for values in each["parts"]] for name, each in found["parts"].items()}
    populations = {
        name: Population(Cost(*each["population"][0]), *each["population"][1:])
        for name, each in found["populations"].items()
    }
    return parts, populations
