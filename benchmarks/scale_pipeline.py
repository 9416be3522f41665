"""A training step on n ranks that each hold a piece of the net, computed event by event; see `scale_model.py`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scale_model import Cost, Link, Part, Step, Sum, split, summed

_BATCHES = 120  # that a stream runs to find its period


class Stage(NamedTuple):
    """The piece of a net on one rank, for a number of samples.

    Attributes:
        forward: seconds until its features can be sent.
        backward: seconds of the rest, without the optimiser.
        update: seconds of the optimiser and of the exchange with other ranks that hold the same piece.
        features: bytes that it sends to the next rank, and that come back as gradients in backprop; 0 for the last.
        weights: bytes of its gradients.
    """

    forward: float
    backward: float
    update: float
    features: float
    weights: float


def stages_of(parts: Sequence[Part], samples: float, size: int, *, local: bool) -> list[Stage]:
    """Return balanced stages of a net.

    Args:
        parts: of the net.
        samples: of a batch, or of a micro-batch.
        size: number of stages; at most that of the parts.
        local: True for a local rule.
    """

    def rest(part: Part) -> Cost:
        return part.learn if local else part.backward

    costs = [part.forward.of(samples) + rest(part).of(samples) + part.update for part in parts]
    ranges = split(costs, size)
    return [
        Stage(
            sum(parts[i].forward.of(samples) for i in some),
            sum(rest(parts[i]).of(samples) for i in some),
            sum(parts[i].update for i in some),
            parts[some[-1]].features * samples if some[-1] < len(parts) - 1 else 0.0,
            sum(parts[i].weights + (parts[i].head if local else 0) for i in some),
        )
        for some in ranges
    ]


def one_forward_one_backward(stages: Sequence[Stage], micro: int, link: Link) -> float:
    """Return the seconds from the first forward pass of a batch to its last backward pass, with the 1F1B schedule.

    Args:
        stages: with the seconds and bytes of one micro-batch.
        micro: number of micro-batches.
        link: of each rank.
    """
    size = len(stages)
    todo = [_schedule(size - 1 - s, micro) for s in range(size)]
    clock, port, done = [0.0] * size, [0.0] * size, [0] * size
    arrived: dict[tuple[int, bool, int], float] = {(0, True, k): 0.0 for k in range(micro)}
    while any(done[s] < len(todo[s]) for s in range(size)):
        for s, stage in enumerate(stages):
            while done[s] < len(todo[s]) and (s, *todo[s][done[s]]) in arrived:
                forward, k = todo[s][done[s]]
                begin = max(clock[s], arrived[s, forward, k])
                clock[s] = begin + (stage.forward if forward else stage.backward)
                done[s] += 1
                to = s + 1 if forward else s - 1
                if to == size:  # the last stage turns round
                    arrived[s, False, k] = clock[s]
                elif to >= 0:
                    sent = stage.features if forward else stages[to].features
                    port[s] = max(port[s], clock[s]) + link.occupied(sent)
                    arrived[to, forward, k] = port[s] + link.trips * link.latency
    return max(clock)


def _schedule(warm_up: int, micro: int) -> list[tuple[bool, int]]:
    """The passes of a stage: forward ones until the stages behind it are full, then one of each kind in turn."""
    first = min(warm_up, micro)
    order = [(True, k) for k in range(first)]
    for k in range(micro - first):
        order += [(True, first + k), (False, k)]
    return order + [(False, k) for k in range(micro - first, micro)]


def stream(stages: Sequence[Stage], link: Link, queue: int = 4, batches: int = _BATCHES, for_update: int = 1) -> float:
    """Return the seconds from batch to batch of a stream through stages that send features forward and nothing back.

    Args:
        stages: with the seconds and bytes of one batch.
        link: of each rank.
        queue: batches between two stages; a stage waits while so many are sent and not yet taken. With 0 it waits
            until the next stage has finished the batch before, and asks for more.
        batches: number of batches to run; the second half of them counts. A multiple of 2 `for_update`.
        for_update: batches whose gradients are added up before the optimiser moves the weights.
    """
    size = len(stages)
    clock, port = [0.0] * size, [0.0] * size
    taken: list[list[float]] = [[] for _ in range(size)]
    for k in range(batches):
        arrival = 0.0
        for s, stage in enumerate(stages):
            begin = max(clock[s], arrival)
            taken[s].append(begin)
            ready = begin + stage.forward
            if s < size - 1:
                if k >= max(queue, 1):
                    ready = max(ready, (taken[s + 1][k - queue] if queue else clock[s + 1]) + link.latency)
                port[s] = max(port[s], ready) + link.occupied(stage.features)
                arrival = port[s] + link.trips * link.latency
            clock[s] = ready + stage.backward + (0.0 if (k + 1) % for_update else stage.update)
    half = batches // 2
    return (taken[-1][-1] - taken[-1][half - 1]) / (batches - half)


def pipeline(
    parts: Sequence[Part], samples: float, ranks: int, link: Link, *, size: int | None = None, micro: int = 4
) -> Step:
    """Return a step of backprop by 1F1B. Ranks beyond the stages hold copies of them, for other samples.

    Args:
        parts: of the net.
        samples: of a micro-batch.
        ranks: n.
        link: of each rank.
        size: number of stages; as many as parts, if there are so many ranks.
        micro: micro-batches of a step, for each stage.
    """
    size = size or min(ranks, len(parts))
    stages = stages_of(parts, samples, size, local=False)
    copies, number = ranks // size, micro * size
    averages = [summed(stage.weights, copies, link) for stage in stages]
    after = max(stage.update + average.seconds for stage, average in zip(stages, averages, strict=True))
    seconds = one_forward_one_backward(stages, number, link) + after
    busy = [number * (stage.forward + stage.backward) + stage.update for stage in stages]
    forth = [number * stage.features for stage in stages]
    sent, received = _both_ways(forth, averages)
    return _step(seconds, copies * number * samples, busy, sent, received, copies, ranks)


def _both_ways(forth: list[float], averages: list[Sum]) -> tuple[list[float], list[float]]:
    """Bytes that each stage sends and receives: features go forth, gradients of the same size back."""
    back = [0.0, *forth[:-1]]
    sent = [f + b + a.sent for f, b, a in zip(forth, back, averages, strict=True)]
    return sent, sent


def local_blocks(
    parts: Sequence[Part],
    samples: float,
    ranks: int,
    link: Link,
    *,
    size: int | None = None,
    queue: int = 4,
    for_update: int = 1,
) -> Step:
    """Return a step of a local rule in blocks mode. Ranks beyond the stages hold copies of them.

    Args:
        parts: of the net.
        samples: of a batch, for each copy.
        ranks: n.
        link: of each rank.
        size: see `pipeline`.
        queue: see `stream`.
        for_update: see `stream`; a step has so many batches.
    """
    size = size or min(ranks, len(parts))
    copies = ranks // size
    stages, averages, busy = _copied(parts, samples, size, copies, link, for_update)
    with_average = [
        stage._replace(update=stage.update + average.seconds) for stage, average in zip(stages, averages, strict=True)
    ]
    batches = 2 * for_update * math.ceil(_BATCHES / for_update)
    seconds = for_update * stream(with_average, link, queue, batches, for_update)
    forth = [for_update * stage.features for stage in stages]
    sent = [f + a.sent for f, a in zip(forth, averages, strict=True)]
    received = [f + a.sent for f, a in zip([0.0, *forth[:-1]], averages, strict=True)]
    return _step(seconds, copies * for_update * samples, busy, sent, received, copies, ranks)


def denoising_blocks(
    parts: Sequence[Part],
    samples: float,
    ranks: int,
    link: Link,
    *,
    shared: bool,
    size: int | None = None,
    for_update: int = 1,
) -> Step:
    """Return a step of NoProp in blocks mode. Ranks beyond the stages hold copies of them.

    Args:
        parts: the blocks, each with its own trunk; with a shared trunk, the trunk and then the heads.
        samples: of a batch, for each copy.
        ranks: n.
        link: of each rank.
        shared: True if the blocks share the trunk of the first one, whose rank sends the features to all others.
        size: see `pipeline`.
        for_update: see `stream`; a step has so many batches.
    """
    size = size or min(ranks, len(parts))
    copies = ranks // size
    _, averages, busy = _copied(parts, samples, size, copies, link, for_update)
    features = for_update * parts[0].features * samples if shared and size > 1 else 0.0
    port = (size - 1) * for_update * link.occupied(features / for_update) if features else 0.0
    seconds = max(port, *(b + a.seconds for b, a in zip(busy, averages, strict=True)))
    forth = [(size - 1) * features] + [0.0] * (size - 1)
    back = [0.0] + [features] * (size - 1)
    sent = [f + a.sent for f, a in zip(forth, averages, strict=True)]
    received = [f + a.sent for f, a in zip(back, averages, strict=True)]
    return _step(seconds, copies * for_update * samples, busy, sent, received, copies, ranks)


def _copied(
    parts: Sequence[Part], samples: float, size: int, copies: int, link: Link, for_update: int
) -> tuple[list[Stage], list[Sum], list[float]]:
    """Return the stages, the average over the copies of each stage, and how long each one computes in a step."""
    stages = stages_of(parts, samples, size, local=True)
    averages = [summed(stage.weights, copies, link) for stage in stages]
    busy = [for_update * (stage.forward + stage.backward) + stage.update for stage in stages]
    return stages, averages, busy


def _step(
    seconds: float,
    samples: float,
    busy: list[float],
    sent: list[float],
    received: list[float],
    copies: int,
    ranks: int,
) -> Step:
    idle = (0.0,) * (ranks - copies * len(busy))  # ranks that are left over
    return Step(
        seconds, samples, sum(busy) * copies / ranks, tuple(sent) * copies + idle, tuple(received) * copies + idle
    )
