"""What a training step takes on n ranks, computed from the measured times of its parts and the properties of a link.

A *rank* is a process with a processor of its own and a port to the network. A port sends and receives at the same time,
and the network between the ports is never full. All times are seconds, all sizes bytes. `scale.py` measures the parts
and compares the results with real runs; docs/scale.md has the results and says what is left out.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

FLOAT = 4  # bytes of a number
Algorithm = Literal["ring", "halving", "best"]


class Link(NamedTuple):
    """A port and the network behind it.

    Attributes:
        bandwidth: bytes per second in each direction.
        latency: seconds that a message is under way.
        message: seconds of the processor for each message.
        trips: latencies that a message takes: 2 if the sender waits until the receiver has asked for it, as in gloo.
        header: bytes that TCP and IP add to a packet.
        payload: bytes of data in a packet.
    """

    bandwidth: float
    latency: float
    message: float = 0.0
    trips: int = 1
    header: int = 52
    payload: int = 1448

    def occupied(self, size: float) -> float:
        """Return how long a message keeps its port."""
        wire = size + math.ceil(size / self.payload) * self.header
        return self.message + wire / self.bandwidth

    def seconds(self, size: float) -> float:
        """Return the time from the send to the receipt of a message."""
        return self.trips * self.latency + self.occupied(size)


class Cost(NamedTuple):
    """Seconds of a computation: a part that each step takes, and a part for each sample."""

    fixed: float
    sample: float

    def of(self, samples: float) -> float:
        """Return the seconds for a number of samples."""
        return self.fixed + self.sample * samples

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.fixed + other.fixed, self.sample + other.sample)


class Part(NamedTuple):
    """A piece of a net between two cuts.

    Attributes:
        forward: the forward pass.
        backward: the backward pass of backprop.
        learn: all that a local rule does after the forward pass of the piece.
        update: seconds of the optimiser.
        weights: bytes of its gradients.
        head: bytes of the gradients of its read-out, which only a local rule has.
        features: bytes of its output for a sample.
    """

    forward: Cost
    backward: Cost
    learn: Cost
    update: float
    weights: int
    head: int
    features: int


class Step(NamedTuple):
    """A step on n ranks; the busiest ranks decide.

    Attributes:
        seconds: from step to step.
        samples: that the step learns from; members times samples for a population.
        busy: seconds that a rank computes, the mean over the ranks.
        sent: bytes that each rank sends.
        received: bytes that each rank receives.
    """

    seconds: float
    samples: float
    busy: float
    sent: tuple[float, ...]
    received: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds


class Sum(NamedTuple):
    """A sum over n ranks: its seconds, and the bytes that each rank sends and receives."""

    seconds: float
    sent: float


def summed(size: float, ranks: int, link: Link, algorithm: Algorithm = "best") -> Sum:
    """Return the cost of the sum of a tensor over the ranks (all-reduce).

    Args:
        size: bytes of the tensor.
        ranks: n.
        link: of each rank.
        algorithm: "ring" sends 2 (n - 1) messages of size / n one after the other, as gloo does; "halving" exchanges
            halves, quarters, ... in 2 log2(n) rounds, and for other n than powers of 2 about as well, by trees; "best"
            is the faster one.
    """
    if ranks == 1:
        return Sum(0.0, 0.0)
    sent = 2 * size * (ranks - 1) / ranks
    ring = Sum(2 * (ranks - 1) * link.seconds(size / ranks), sent)
    rounds = 2 * math.ceil(math.log2(ranks))
    halving = Sum((rounds - 1) * link.seconds(0) + link.seconds(sent), sent)
    return {"ring": ring, "halving": halving, "best": min(ring, halving)}[algorithm]


def exchanged(own: float, ranks: int, link: Link) -> Sum:
    """Return the cost of sending the bytes of each rank to all others (all-gather), by the faster of two ways.

    Either each rank sends its own to each other rank directly, or it passes on all that it has in log2(n) rounds.

    Args:
        own: bytes of each rank.
        ranks: n.
        link: of each rank.
    """
    if ranks == 1:
        return Sum(0.0, 0.0)
    directly = link.trips * link.latency + (ranks - 1) * link.occupied(own)
    have = [min(own * 2**k, own * (ranks - 2**k)) for k in range(math.ceil(math.log2(ranks)))]
    return Sum(min(directly, sum(map(link.seconds, have))), own * (ranks - 1))


def slowest(ranks: int, spread: float) -> float:
    """Return the expected time of the slowest of n ranks whose times are normal with mean 1 (Blom's formula).

    Args:
        ranks: n.
        spread: the standard deviation of a rank's time.
    """
    return 1 + spread * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def everywhere(value: float, ranks: int) -> tuple[float, ...]:
    """Return the same value for each rank."""
    return (value,) * ranks


def split(costs: Sequence[float], ranks: int) -> list[range]:
    """Return consecutive parts for each rank so that the largest total is as small as possible.

    Args:
        costs: of the parts in their order.
        ranks: at most as many as parts.
    """
    low, high = max(costs), sum(costs)
    found = _packed(costs, high, ranks)
    for _ in range(60):
        limit = (low + high) / 2
        tried = _packed(costs, limit, ranks)
        if tried is None:
            low = limit
        else:
            found, high = tried, limit
    assert found is not None
    return found


def _packed(costs: Sequence[float], limit: float, ranks: int) -> list[range] | None:
    """Parts for each rank with totals up to a limit; None if that needs more ranks."""
    bounds, total = [0], 0.0
    for index, cost in enumerate(costs):
        left = ranks - len(bounds)  # ranks that have nothing yet
        full = total + cost > limit * (1 + 1e-12) or len(costs) - index == left
        if full and index > bounds[-1]:
            bounds.append(index)
            total = 0.0
        total += cost
    if len(bounds) > ranks:
        return None
    return [range(a, b) for a, b in zip(bounds, [*bounds[1:], len(costs)], strict=True)]


def by_rows(
    parts: Sequence[Part],
    samples: float,
    ranks: int,
    link: Link,
    *,
    local: bool,
    bucket: float = 0.0,
    spread: float = 0.0,
    algorithm: Algorithm = "best",
) -> Step:
    """Return a step where each rank computes some rows of the batch, and gradients are averaged.

    Args:
        parts: of the net.
        samples: of the whole batch.
        ranks: n.
        link: of each rank.
        local: True for a local rule, whose first part is ready first; with backprop the last part is.
        bucket: gradients wait until there are so many bytes of them, or until all are there; infinite to send all at
            the end. What is sent earlier is on its way while other parts compute.
        spread: see `slowest`.
        algorithm: see `summed`.
    """
    rows = samples / ranks
    slow = slowest(ranks, spread)
    if local:
        order = [(part.forward + part.learn, part.weights + part.head) for part in parts]
        clock = 0.0
    else:
        order = [(part.backward, part.weights) for part in reversed(parts)]
        clock = slow * sum(part.forward.of(rows) for part in parts)
    network, sent, waiting = 0.0, 0.0, 0.0
    for index, (cost, size) in enumerate(order, start=1):
        clock += slow * cost.of(rows)
        waiting += size
        if waiting >= bucket or index == len(order):
            found = summed(waiting, ranks, link, algorithm)
            network, sent, waiting = max(network, clock) + found.seconds, sent + found.sent, 0.0
    update = sum(part.update for part in parts)
    busy = clock / slow + update
    both = everywhere(sent, ranks)
    return Step(max(clock, network) + update, samples, busy, both, both)


class Population(NamedTuple):
    """A population on a net.

    Attributes:
        member: the evaluation of a member, with its noise.
        noise: seconds to draw a member's noise again, for the sum of all.
        fixed: seconds that a step takes without members: the optimiser, and the rest.
    """

    member: Cost
    noise: float
    fixed: float


def by_members(
    population: Population,
    members: int,
    samples: float,
    ranks: int,
    link: Link,
    *,
    spread: float = 0.0,
    weights: float = 0.0,
) -> Step:
    """Return a step where each rank evaluates some members, and all exchange the scores.

    Each rank draws the noise of all members again to sum it up. That time does not shrink with the number of ranks.
    With `weights`, each rank sums up the noise of its own members, and these sums, as large as the net, are averaged.

    Args:
        population: the measured costs.
        members: P; at least n.
        samples: of the batch that all members see.
        ranks: n.
        link: of each rank.
        spread: see `slowest`.
        weights: bytes of the net's gradients, to average them; 0 to draw all noise on each rank.
    """
    own = math.ceil(members / ranks)
    busy = own * population.member.of(samples)
    again = (own if weights else members) * population.noise + population.fixed
    exchange = exchanged((own + 1) * FLOAT, ranks, link)  # one number more: whether somebody asked to stop
    average = summed(weights, ranks, link) if weights else Sum(0.0, 0.0)
    both = everywhere(exchange.sent + average.sent, ranks)
    seconds = slowest(ranks, spread) * (busy + again) + exchange.seconds + average.seconds
    return Step(seconds, members * samples, busy + again, both, both)
