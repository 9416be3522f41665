"""Differences between a rule and its baseline: confidence intervals, p values and verdicts, over seeds and samples.

Every table that states a difference (terminal, HTML, JSON) takes its numbers and texts from this module.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bpfree.errors import UserError

Verdict = Literal["better", "worse", "not shown", "too few seeds"]
"""The outcome of a comparison of two rules."""
FEWEST_SEEDS = 3
"""The number of seeds below which rules are not compared: the spread of two seeds says almost nothing (t = 12.7)."""
LEVEL = 0.95
"""The confidence level of all intervals; a difference is shown if its corrected p value is below 1 - LEVEL."""
_POWER = 1.5  # of the weights of the two quantiles; see `paired_difference`
_SMALLEST_P = 1e-99
_ROUNDING = 1e-9  # relative; smaller spreads of scores are rounding errors


@dataclass(frozen=True)
class Difference:
    """The mean difference of a rule from its baseline, and how sure it is.

    Attributes:
        mean: rule minus baseline, the mean over the seeds, in the unit of the scores.
        seeds: the number of seeds that both have, S.
        interval: the confidence interval for the two rules, (low, high); None with too few seeds.
        p: the two-sided p value of "the rules do not differ"; None with too few seeds.
        nets: with one seed, the confidence interval for the two trained nets alone; otherwise None.
    """

    mean: float
    seeds: int
    interval: tuple[float, float] | None = None
    p: float | None = None
    nets: tuple[float, float] | None = None


def paired_difference(rule: NDArray[Any], baseline: NDArray[Any]) -> Difference:
    """Return the difference of a rule from its baseline, with a confidence interval and a p value.

    Answers [S, N] say which of N samples each of S nets has right. Their interval holds for new seeds and new samples:
    if the whole comparison were repeated with other seeds and another test split, 95 % of the intervals would contain
    the true difference. Scores [S], such as losses, only show the spread of the seeds, so their interval holds for new
    seeds on the same test split. It is the interval of the paired t-test.

    The differences d[s, i] of answers are -1, 0 or 1. They vary by seed, by sample and by both (crossed random effects
    in a two-way table without replication), with the mean squares A, B and E. Their mean has the variance
    V = (A + C) / (S N), with C = B - E for the samples, and the interval is mean ± q sqrt(V). The quantile q lies
    between that of Student's t with S - 1 degrees of freedom and that of the normal distribution, because A is known
    from S seeds alone: their weights are A^1.5 and C^1.5. Counts are integers, so a spread of 0 is luck: C is at least
    that of one answer, 1 / N, and A at least E / 20.

    Satterthwaite's degrees of freedom, which are usual for V, trust A too much: with 3 seeds the intervals can cover
    91 %, and p values below 0.0025, which Holm's correction needs, come up to 8 times too often. Cochran's weights, A
    and C, can cover more than 97 %. With the power 1.5 intervals cover 95 to 97 %, and such p values come up to 3 times
    too often. A bootstrap over seeds and samples covers 99 % where seeds do not matter and 77 % where they do. See
    `benchmarks/coverage.py`.

    Args:
        rule: right or wrong, bool [S, N], or scores [S]; row s has the seed of row s of the baseline.
        baseline: the same for the baseline.

    Raises:
        UserError: the shapes differ, or there are no seeds or no samples.

    Reference:
        Hillis (2014), A marginal-mean ANOVA approach for analyzing multireader multicase radiological imaging data,
        https://doi.org/10.1002/sim.5926: seeds are its readers, samples its cases. Cochran (1964), Approximate
        significance levels of the Behrens-Fisher test.

    Example:
        >>> right, all_right = np.ones((3, 360), dtype=bool), np.ones((3, 360), dtype=bool)
        >>> right[:, 0] = False
        >>> difference = paired_difference(right, all_right)
        >>> f"{difference.mean:.4f}, p = {difference.p:.2f}"
        '-0.0028, p = 0.32'
    """
    if rule.shape != baseline.shape or rule.ndim not in (1, 2) or not rule.size:
        raise UserError(
            f"answers: found shapes {list(rule.shape)} and {list(baseline.shape)}, allowed: twice [S, N], or twice [S]"
        )
    d = rule.astype(float) - baseline.astype(float)
    mean, seeds = float(d.mean()), len(d)
    if d.ndim == 1:
        return _of_scores(d, scale=float(np.abs(baseline).max()))
    of_seeds, of_samples = _variances(d)
    if seeds >= FEWEST_SEEDS:
        return Difference(mean, seeds, *_interval(mean, of_seeds, of_samples, seeds - 1))
    return Difference(mean, seeds, nets=_interval(mean, 0.0, of_samples, 1)[0] if seeds == 1 else None)


def _of_scores(d: NDArray[np.float64], scale: float) -> Difference:
    """Return the paired t-test of the differences of scores, [S]; `scale` is the size of the scores."""
    mean, seeds = float(d.mean()), len(d)
    if seeds < FEWEST_SEEDS:
        return Difference(mean, seeds)
    spread = float(d.std(ddof=1))
    if spread > _ROUNDING * scale:
        return Difference(mean, seeds, *_interval(mean, spread**2 / seeds, 0.0, seeds - 1))
    # Scores that are the same for each seed are those of the same weights, and their difference is exactly 0. Any other
    # constant difference has no visible spread, so nothing can be said about it.
    return Difference(0.0, seeds, (0.0, 0.0), 1.0) if abs(mean) <= _ROUNDING * scale else Difference(mean, seeds)


def _variances(d: NDArray[np.float64]) -> tuple[float, float]:
    """Return the parts of the variance of the mean of d [S, N] that seeds and samples have, A / (S N) and C / (S N)."""
    seeds, samples = d.shape
    mean, of_seeds, of_samples = d.mean(), d.mean(1), d.mean(0)
    b = seeds * float(((of_samples - mean) ** 2).sum()) / max(samples - 1, 1)
    if seeds == 1:
        return 0.0, max(b, 1 / samples) / samples
    a = samples * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1)
    rest = d - of_seeds[:, None] - of_samples + mean
    e = float((rest**2).sum()) / ((seeds - 1) * max(samples - 1, 1))
    return max(a, e / 20) / d.size, max(b - e, 1 / samples) / d.size


def _interval(mean: float, of_seeds: float, of_samples: float, freedom: int) -> tuple[tuple[float, float], float]:
    """Return the confidence interval and the p value of a mean.

    Args:
        mean: the mean.
        of_seeds: the part of its variance that is known with few degrees of freedom.
        of_samples: the part that is known well.
        freedom: the degrees of freedom of the first part.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri, stdtrit

    weight = of_seeds**_POWER / (of_seeds**_POWER + of_samples**_POWER)
    error = math.sqrt(of_seeds + of_samples)

    def half_width(p: float) -> float:
        student, normal = -stdtrit(freedom, p / 2), -ndtri(p / 2)
        return error * float(weight * student + (1 - weight) * normal)

    half, distance = half_width(1 - LEVEL), abs(mean)
    if distance >= half_width(_SMALLEST_P):
        p = _SMALLEST_P
    else:  # by the logarithm, because p values of different orders of magnitude need the same accuracy
        p = math.exp(brentq(lambda log: half_width(math.exp(log)) - distance, math.log(_SMALLEST_P), 0.0))
    return (mean - half, mean + half), p


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that are corrected for their number, so that at most 5 % of tables have a false verdict.

    Args:
        p_values: one for each rule of a table.

    Reference:
        Holm (1979), A simple sequentially rejective multiple test procedure.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdict(mean: float, p_holm: float | None, *, is_loss: bool) -> Verdict:
    """Return what a difference shows.

    Args:
        mean: the mean difference from the baseline.
        p_holm: its corrected p value; None with too few seeds.
        is_loss: True if smaller scores are better.
    """
    if p_holm is None:
        return "too few seeds"
    if p_holm >= 1 - LEVEL:
        return "not shown"
    return "better" if (mean < 0) == is_loss else "worse"


def pack(right: NDArray[np.bool_]) -> str:
    """Return which samples are right, bool [N], as base64 text of one bit for each sample.

    >>> pack(np.array([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpack(text: str, samples: int) -> NDArray[np.bool_]:
    """Return which samples are right, bool [N], from the text of `pack`.

    Args:
        text: base64 of the bits.
        samples: the number of samples N.

    Raises:
        UserError: the text is not that of N bits.
    """
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except ValueError as error:
        raise UserError(f"right: found {text[:20]!r}, allowed: base64 text") from error
    if len(values) != math.ceil(samples / 8):
        raise UserError(f"right: found {8 * len(values)} bits, allowed: those of {samples} samples")
    return np.unpackbits(values, count=samples).astype(bool)


def difference_text(row: Mapping[str, Any]) -> str:
    """Return the difference of a row from its baseline as text, in points or in the unit of the loss.

    Args:
        row: a row of compare.json.

    Returns:
        "-0.28 [-1.02, +0.46]" with the interval for the rules; "-0.28 (-0.90, +0.34)" with the interval for two nets
        of one seed; "-0.28" with too few seeds; "" without a baseline.

    Example:
        >>> difference_text({"metric": "accuracy", "difference": -0.0028, "interval": [-0.0102, 0.0046]})
        '-0.28 [-1.02, +0.46]'
    """
    if "difference" not in row:
        return ""
    text = _signed(row, row["difference"])
    for key, form in (("interval", " [{}, {}]"), ("interval_of_nets", " ({}, {})")):
        if key in row:
            return text + form.format(*(_signed(row, end) for end in row[key]))
    return text


def _signed(row: Mapping[str, Any], value: float) -> str:
    """Return a difference with its sign: in points with two decimal places, or a loss with four."""
    text = f"{100 * value:+.2f}" if row["metric"] == "accuracy" else f"{value:+.4f}"
    return text.replace("-", "+") if not float(text) else text  # "-0.00" would show a direction


def mark(row: Mapping[str, Any]) -> str:
    """Return "*" for a row that is better or worse than its baseline, and "" for all others.

    Args:
        row: a row of compare.json.
    """
    return "*" if row.get("verdict") in ("better", "worse") else ""


def footer(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return plain sentences that explain intervals and marks of a table; an empty list if nothing was compared.

    Args:
        rows: the rows of one group of compare.json.
    """
    compared = [row for row in rows if "difference" in row]
    if not compared:
        return []
    tested = [row for row in compared if "p_holm" in row]
    if not tested:
        return _with_few_seeds(max(row["seeds_compared"] for row in compared), compared)
    seeds = sorted({row["seeds_compared"] for row in tested})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    samples = next((run["samples"] for row in tested for run in row["runs"] if run.get("right")), None)
    alone = f", for this {tested[0]['runs'][0]['split']} split alone"
    over = f"{number} seeds{f' and {samples:,} test samples' if samples else alone}"
    rules = f"{len(tested)} rows" if len(tested) > 1 else "1 row"
    direction = "smaller is better" if tested[0]["metric"] == "loss" else "in points"
    return [
        f"Difference from the baseline of the same net ({direction}) [95 % confidence interval over {over}].",
        f"* better or worse: p < 0.05, corrected for {rules} (Holm). Without * no difference is shown.",
    ]


def _with_few_seeds(seeds: int, compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sentences for a table that has too few seeds for verdicts."""
    few = f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few to compare rules: use {FEWEST_SEEDS} or more."
    if not any("interval_of_nets" in row for row in compared):
        return [few]
    return [
        few,
        "(low, high): 95 % confidence interval over test samples; it compares two trained nets, not rules.",
    ]
