"""Intervals hold what they promise, whatever varies: seeds, samples or both."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from bpfree import UserError
from bpfree.lab.statistics import (
    difference_text,
    footer,
    holm,
    mark,
    pack,
    paired_difference,
    unpack,
    verdict,
)


def answers(counts, samples, rng=None):
    """Bits [S, N] with given counts; the wrong ones are the first samples, or random ones."""
    bits = np.ones((len(counts), samples), dtype=bool)
    for row, count in zip(bits, counts, strict=True):
        wrong = np.arange(samples - count) if rng is None else rng.permutation(samples)[: samples - count]
        row[wrong] = False
    return bits


@pytest.mark.parametrize("wrong", ["the same samples", "other samples in each net", "nested, other samples per seed"])
def test_one_sample_of_360_in_each_seed_shows_nothing(wrong):
    """A t-test over these three accuracies gives p = 1.8e-28: the differences are equal up to rounding."""
    ours, theirs = (354, 352, 355), (355, 353, 356)
    rule, baseline = answers(ours, 360), answers(theirs, 360)
    if wrong == "other samples in each net":
        rule, baseline = (answers(c, 360, np.random.default_rng(n)) for n, c in enumerate((ours, theirs)))
    elif wrong.startswith("nested"):
        rule, baseline = (np.stack([np.roll(row, 40 * n) for n, row in enumerate(bits)]) for bits in (rule, baseline))
    difference = paired_difference(rule, baseline)
    assert difference.mean == pytest.approx(-1 / 360)
    assert difference.interval[0] < 0 < difference.interval[1]
    assert difference.p > 0.05
    scores = paired_difference(np.array(ours) / 360, np.array(theirs) / 360)
    assert scores.interval is None  # without the answers, equal differences show no spread
    assert verdict(scores.mean, scores.p, is_loss=False) == "too few seeds"


def test_equal_answers_do_not_differ():
    bits = answers((340, 350, 345), 360)
    difference = paired_difference(bits, bits)
    assert (difference.mean, difference.p) == (0, 1)
    assert difference.interval[0] < 0 < difference.interval[1]
    assert paired_difference(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3])).interval == (0, 0)


def test_scores_get_the_paired_t_test():
    rng = np.random.default_rng(0)
    rule, baseline = rng.normal(1, 0.1, 5), rng.normal(1.2, 0.1, 5)
    expected = ttest_rel(rule, baseline)
    difference = paired_difference(rule, baseline)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_variance_is_that_of_what_varies():
    """With the same answers for each seed, only samples count; with all samples alike, only seeds."""
    rng = np.random.default_rng(1)
    rule, baseline = rng.random((2, 1, 500)) < 0.7
    one, three = (paired_difference(np.tile(rule, (s, 1)), np.tile(baseline, (s, 1))) for s in (1, 3))
    assert three.interval == pytest.approx(one.nets)
    seeds = np.array([True, False, True, True, False])
    alike = paired_difference(np.tile(seeds[:, None], 400), np.zeros((5, 400), dtype=bool))
    assert alike.p == pytest.approx(ttest_rel(seeds.astype(float), np.zeros(5)).pvalue, rel=1e-3)


def benchmark():
    """The simulation of benchmarks/coverage.py."""
    spec = importlib.util.spec_from_file_location("coverage", Path(__file__).parents[2] / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rules", ["alike", "different"])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_intervals_contain_the_true_difference_as_often_as_they_promise(spread, rules):
    """The benchmark has 2,000 comparisons; with 600, a coverage of 95 % varies by 1.8 points (two standard errors)."""
    simulation = benchmark()
    setting = simulation.Setting(0.85, 360, spread, rules)
    rates, _, _ = simulation.coverage(setting, 600, seeds=3, methods=["bpfree", "t over seeds"])
    assert 0.93 <= rates["bpfree"] <= 0.985
    if (spread, rules) == (0.0, "different"):  # the test samples are part of the chance, and seeds do not show it
        assert rates["t over seeds"] < 0.9


def test_interval_and_p_value_agree_and_the_sides_are_symmetric():
    rng = np.random.default_rng(2)
    for _ in range(200):
        rule, baseline = rng.random((2, 3, 60)) < rng.uniform(0.6, 0.9, (2, 1, 1))
        there, back = paired_difference(rule, baseline), paired_difference(baseline, rule)
        low, high = there.interval
        assert (low <= 0 <= high) == (there.p >= 0.05)
        assert back.interval == pytest.approx((-high, -low))
        assert back.p == pytest.approx(there.p)


def test_too_few_seeds_have_no_interval_for_rules():
    bits, others = answers((340, 350), 360), answers((350, 320), 360)
    assert paired_difference(bits, others).interval is None
    assert paired_difference(bits, others).nets is None
    one = paired_difference(bits[:1], others[:1])
    assert one.interval is None
    assert one.nets[0] < one.mean < one.nets[1]
    with pytest.raises(UserError, match=r"shapes \[2, 360\] and \[1, 360\]"):
        paired_difference(bits, others[:1])


def test_holm_is_between_no_correction_and_bonferroni():
    """By hand, the example of Holm's paper: thresholds p n, p (n - 1), ... that never fall."""
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    rng = np.random.default_rng(3)
    p = rng.random(9) ** 3
    corrected = np.array(holm(list(p)))
    assert ((p <= corrected) & (corrected <= np.minimum(9 * p, 1))).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()
    assert corrected.min() == pytest.approx(min(9 * p.min(), 1))
    assert holm([]) == []


def test_verdicts_look_at_the_direction_of_the_metric():
    assert verdict(0.1, 0.01, is_loss=False) == verdict(-0.1, 0.01, is_loss=True) == "better"
    assert verdict(-0.1, 0.01, is_loss=False) == verdict(0.1, 0.01, is_loss=True) == "worse"
    assert verdict(0.1, 0.06, is_loss=False) == "not shown"
    assert verdict(0.1, None, is_loss=False) == "too few seeds"


def test_bits_are_kept():
    rng = np.random.default_rng(4)
    for samples in (1, 8, 9, 360, 1001):
        right = rng.random(samples) < 0.5
        assert (unpack(pack(right), samples) == right).all()
    with pytest.raises(UserError, match="found 8 bits, allowed: those of 9 samples"):
        unpack(pack(right[:8]), 9)
    with pytest.raises(UserError, match="allowed: base64"):
        unpack("not base64!", 9)


def row(**values):
    runs = [{"split": "test", "samples": 360, "right": "..."}]
    return {"metric": "accuracy", "difference": -0.0028, "runs": runs, "seeds_compared": 3} | values


def test_texts():
    shown = row(interval=[-0.0102, 0.0046], p_holm=0.2, verdict="not shown")
    assert difference_text(shown) == "-0.28 [-1.02, +0.46]"
    assert difference_text(row(metric="loss", difference=0.01234)) == "+0.0123"
    assert difference_text(row(difference=-1e-9, interval_of_nets=[-0.01, 0.01])) == "+0.00 (-1.00, +1.00)"
    assert difference_text({"metric": "accuracy"}) == ""
    assert (mark(shown), mark(row(verdict="worse")), mark({})) == ("", "*", "")
    text = " ".join(footer([shown, shown, {"metric": "accuracy"}]))
    assert "over 3 seeds and 360 test samples" in text
    assert "corrected for 2 rows (Holm)" in text
    without_test = shown | {"runs": [{"split": "validation", "samples": None, "right": None}]}
    assert "over 3 seeds, for this validation split alone" in footer([without_test])[0]
    few = " ".join(footer([row(seeds_compared=1, interval_of_nets=[-0.01, 0.01])]))
    assert "1 seed is too few to compare rules: use 3 or more" in few
    assert "two trained nets, not rules" in few
    assert footer([{"metric": "accuracy"}]) == []
