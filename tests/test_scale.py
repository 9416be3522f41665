"""The simulator of benchmarks/scale.py: where the answer is known, it gives it."""

import sys
from itertools import combinations, pairwise
from math import inf, log2
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from scale_model import (
    Cost,
    Link,
    Part,
    Population,
    by_members,
    by_rows,
    exchanged,
    slowest,
    split,
    summed,
)
from scale_pipeline import (
    Stage,
    denoising_blocks,
    local_blocks,
    one_forward_one_backward,
    pipeline,
    stages_of,
    stream,
)

FREE = Link(inf, 0.0)
SLOW = Link(12.5e6, 0.02)
PARTS = [
    Part(Cost(1e-4, 2e-5 * k), Cost(2e-4, 4e-5 * k), Cost(1e-4, 3e-5 * k), 1e-3 * k, 40_000 * k, 4_000, 400 * k)
    for k in (3, 1, 2, 4)
]
POPULATION = Population(Cost(1e-4, 1e-6), 2e-5, 1e-3)
SAMPLES = 64

ALL = {
    "rows": lambda n, link: by_rows(PARTS, SAMPLES, n, link, local=False),
    "rows, sent at the end": lambda n, link: by_rows(PARTS, SAMPLES, n, link, local=False, bucket=inf),
    "local rows": lambda n, link: by_rows(PARTS, SAMPLES, n, link, local=True),
    "pipeline": lambda n, link: pipeline(PARTS, SAMPLES / 4, n, link),
    "local blocks": lambda n, link: local_blocks(PARTS, SAMPLES, n, link),
    "own trunks": lambda n, link: denoising_blocks(PARTS, SAMPLES, n, link, shared=False),
    "shared trunk": lambda n, link: denoising_blocks(PARTS, SAMPLES, n, link, shared=True),
    "members, averaged": lambda n, link: by_members(POPULATION, 64, SAMPLES, n, link, weights=1e6),
    "members": lambda n, link: by_members(POPULATION, 64, SAMPLES, n, link),
}


def measured(*, local: bool) -> float:
    """The seconds of a step in one process."""
    rest = [part.learn if local else part.backward for part in PARTS]
    return sum(p.forward.of(SAMPLES) + r.of(SAMPLES) + p.update for p, r in zip(PARTS, rest, strict=True))


def test_one_rank_takes_what_was_measured_and_sends_nothing():
    expected = {
        "rows": measured(local=False),
        "rows, sent at the end": measured(local=False),
        "local rows": measured(local=True),
        "local blocks": measured(local=True),
        "own trunks": measured(local=True),
        "shared trunk": measured(local=True),
        "members, averaged": 64 * (POPULATION.member.of(SAMPLES) + POPULATION.noise) + POPULATION.fixed,
        "members": 64 * POPULATION.member.of(SAMPLES) + 64 * POPULATION.noise + POPULATION.fixed,
    }
    for name, seconds in expected.items():
        step = ALL[name](1, SLOW)
        assert step.seconds == pytest.approx(seconds)
        assert step.busy == pytest.approx(seconds)
        assert step.sent == step.received == (0,)
    whole = sum(part.forward.of(SAMPLES / 4) + part.backward.of(SAMPLES / 4) for part in PARTS)
    assert ALL["pipeline"](1, SLOW).seconds == pytest.approx(4 * whole + sum(part.update for part in PARTS))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 13])
def test_bytes_that_are_sent_are_received(name, ranks):
    step = ALL[name](ranks, SLOW)
    assert len(step.sent) == len(step.received) == ranks
    assert sum(step.sent) == pytest.approx(sum(step.received))
    assert step.busy <= step.seconds * (1 + 1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_slower_link_never_helps(name, ranks):
    links = [FREE, SLOW._replace(latency=0.0), SLOW, SLOW._replace(latency=1.0), SLOW._replace(bandwidth=1e3)]
    free, *others = [ALL[name](ranks, link).seconds for link in links]
    assert all(free <= other * (1 + 1e-9) for other in others)


@pytest.mark.parametrize("name", [name for name in ALL if "trunk" not in name])
def test_a_step_that_waits_for_others_grows_with_the_latency_without_limit(name):
    assert ALL[name](2, SLOW._replace(latency=1e6)).seconds > 1e5


def test_own_trunks_send_nothing_and_do_not_feel_the_link():
    for ranks in (2, 3, 4):
        step = ALL["own trunks"](ranks, SLOW._replace(latency=inf))
        assert sum(step.sent) == 0
        assert step.seconds == ALL["own trunks"](ranks, FREE).seconds


def test_members_send_their_scores_and_nothing_else():
    step = by_members(POPULATION, 1000, SAMPLES, 10, SLOW)
    assert step.sent == ((100 + 1) * 4 * 9,) * 10


def test_noise_that_every_rank_draws_does_not_shrink():
    free = [by_members(POPULATION, 1024, SAMPLES, n, FREE).seconds for n in (1, 2, 1024)]
    again = 1024 * POPULATION.noise + POPULATION.fixed
    assert free[0] - again == pytest.approx(2 * (free[1] - again))
    assert free[2] - again == pytest.approx(POPULATION.member.of(SAMPLES))


def test_free_link_splits_rows_up_to_what_does_not_shrink():
    fixed = sum(p.forward.fixed + p.backward.fixed + p.update for p in PARTS)
    each = measured(local=False) - fixed
    for ranks in (2, 5, 1000):
        assert by_rows(PARTS, SAMPLES, ranks, FREE, local=False).seconds == pytest.approx(fixed + each / ranks)


def test_sums_over_ranks():
    plain = Link(1e6, 0.0, header=0)
    for ranks in (2, 4, 8, 64):
        ring, halving = (summed(1e6, ranks, plain, each) for each in ("ring", "halving"))
        assert ring.sent == pytest.approx(halving.sent) == pytest.approx(2e6 * (ranks - 1) / ranks)
        assert ring.seconds == pytest.approx(halving.seconds) == pytest.approx(ring.sent / 1e6)
        late = plain._replace(latency=1.0)
        assert summed(1e6, ranks, late, "ring").seconds == pytest.approx(ring.seconds + 2 * (ranks - 1))
        assert summed(1e6, ranks, late, "halving").seconds == pytest.approx(ring.seconds + 2 * log2(ranks))
    assert summed(1e6, 1000, plain._replace(latency=1.0)) == summed(1e6, 1000, plain._replace(latency=1.0), "halving")
    assert exchanged(100, 9, plain).sent == 800


def test_overlap_hides_a_sum_behind_the_backward_pass():
    with_overlap, without = (
        by_rows(PARTS, SAMPLES, 4, SLOW._replace(latency=1e-4), local=False, bucket=each) for each in (0, inf)
    )
    assert with_overlap.seconds < without.seconds
    assert with_overlap.sent == pytest.approx(without.sent)


def test_equal_stages_have_the_bubble_of_the_textbook():
    for size in (1, 2, 4, 7):
        for micro in (1, 3, 8, 40):
            seconds = one_forward_one_backward([Stage(1.0, 2.0, 0, 0, 0)] * size, micro, FREE)
            assert seconds == pytest.approx(3 * (micro + size - 1))


def test_stream_takes_the_time_of_its_slowest_stage_or_link():
    stages = stages_of(PARTS, SAMPLES, 4, local=True)
    slowest_stage = max(stage.forward + stage.backward + stage.update for stage in stages)
    assert stream(stages, FREE) == pytest.approx(slowest_stage)
    assert stream(stages, FREE._replace(latency=slowest_stage / 10)) == pytest.approx(slowest_stage)  # hidden
    thin = Link(1e4, 0.0)
    assert stream(stages, thin) == pytest.approx(max(thin.occupied(stage.features) for stage in stages[:-1]))


def test_an_update_after_several_batches_takes_its_time_once():
    for ranks in (1, 4):
        one, three = (local_blocks(PARTS, SAMPLES, ranks, FREE, for_update=each) for each in (1, 3))
        assert three.samples == 3 * one.samples
        stages = stages_of(PARTS, SAMPLES, ranks, local=True)
        assert three.seconds == pytest.approx(max(3 * (s.forward + s.backward) + s.update for s in stages))
        blocks = denoising_blocks(PARTS, SAMPLES, ranks, FREE, shared=False, for_update=3)
        assert blocks.seconds == pytest.approx(three.seconds)


def test_batches_in_flight_bound_a_stream_over_a_long_link():
    stages = [Stage(0.0, 1e-3, 0, 1, 0), Stage(0.0, 1e-3, 0, 0, 0)]
    long = Link(inf, 1.0)
    for queue in (1, 2, 5):
        assert stream(stages, long, queue) == pytest.approx(2 / queue, rel=0.02)
    assert stream(stages, long, 0) == pytest.approx(2 + 1e-3)


def test_no_split_into_stages_is_better():
    for costs in ([3, 1, 2, 4], [1.0] * 10, [5, 1, 1, 1, 5], [9, 1, 1], [1, 1, 9]):
        for ranks in range(1, len(costs) + 1):
            found = split(costs, ranks)
            assert [i for some in found for i in some] == list(range(len(costs)))
            assert len(found) == ranks
            cuts = combinations(range(1, len(costs)), ranks - 1)
            best = min(max(sum(costs[a:b]) for a, b in pairwise([0, *cut, len(costs)])) for cut in cuts)
            assert max(sum(costs[i] for i in some) for some in found) == best


def test_copies_of_stages_exchange_gradients():
    for name in ("local blocks", "own trunks"):
        one, two = (ALL[name](4 * copies, SLOW) for copies in (1, 2))
        assert two.samples == 2 * one.samples
        assert sum(two.sent) == pytest.approx(2 * sum(one.sent) + 2 * sum(p.weights + p.head for p in PARTS))


def test_the_slowest_of_many_ranks_is_slower():
    assert slowest(1, 0.1) == pytest.approx(1)
    assert slowest(2, 0.1) == pytest.approx(1 + 0.1 * 0.5642, abs=0.003)  # 1 / sqrt(pi)
    assert slowest(10, 0.1) == pytest.approx(1 + 0.1 * 1.5388, abs=0.003)
    assert slowest(1000, 0.0) == 1
