"""How often the confidence interval of a comparison contains the true difference, in simulated comparisons.

    python benchmarks/coverage.py [--comparisons 2000] [--seeds 3] [--samples 360 10000] [--draw 0]

A sample has a difficulty that all nets share, and one for each rule. A net of a rule and a seed has a true accuracy,
which varies by seed, and answers rightly where a normal number, with the difficulties in it, is below the threshold of
this accuracy. So the answers of two nets are correlated, and the true difference of the rules is known. Settings:

    accuracy   0.85, 0.97 or 0.995, the mean of both rules; the true difference is up to 1 point, or half of the errors
    samples    in the test split
    spread     standard deviation of the true accuracies over the seeds, in points
    rules      "alike": the rules find the same samples hard, as two kinds of backprop do; "different": as DFA and
               backprop on digits do

The methods are those from which `bpfree.lab.statistics.paired_difference` was chosen; each should contain the true
difference in 95 % of the comparisons.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import t

from bpfree.lab.statistics import paired_difference

SHARES = {"alike": (0.85, 0.03), "different": (0.5, 0.35)}
"""The share of the variance that the difficulty for all nets has, and that of the difficulty for one rule."""
ACCURACIES, SPREADS = (0.85, 0.97, 0.995), (0.0, 0.1, 0.5)
RESAMPLES = 200
Bits = NDArray[np.bool_]


class Setting(NamedTuple):
    """A kind of comparison; see the top of this file."""

    accuracy: float
    samples: int
    spread: float
    rules: str


def settings(samples: Sequence[int]) -> list[Setting]:
    """Return every combination of the values at the top of this file."""
    return [Setting(*values) for values in itertools.product(ACCURACIES, samples, SPREADS, SHARES)]


def simulate(setting: Setting, seeds: int, rng: np.random.Generator) -> tuple[Bits, Bits, float]:
    """Return the answers of a rule and of its baseline, bool [S, N], and the true difference of their accuracies."""
    shared, of_rule = SHARES[setting.rules]
    gap = float(rng.uniform(-0.5, 0.5)) * min(0.02, 1 - setting.accuracy)
    difficulty = shared**0.5 * rng.standard_normal(setting.samples, dtype=np.float32)  # [N]
    answers = []
    for accuracy in (setting.accuracy + gap / 2, setting.accuracy - gap / 2):
        level = np.full((seeds, 1), accuracy)
        if setting.spread:  # a beta distribution: no accuracy is above 1
            strength = accuracy * (1 - accuracy) / (setting.spread / 100) ** 2 - 1
            level = rng.beta(accuracy * strength, (1 - accuracy) * strength, (seeds, 1))
        hard = of_rule**0.5 * rng.standard_normal(setting.samples, dtype=np.float32)  # [N]
        own = (1 - shared - of_rule) ** 0.5 * rng.standard_normal((seeds, setting.samples), dtype=np.float32)  # [S, N]
        answers.append(difficulty + hard + own < ndtri(level).astype(np.float32))
    return answers[0], answers[1], gap


def ours(rule: Bits, baseline: Bits, rng: np.random.Generator) -> tuple[float, float]:
    """Return the interval of bpfree."""
    interval = paired_difference(rule, baseline).interval
    assert interval is not None
    return interval


def over_seeds(rule: Bits, baseline: Bits, rng: np.random.Generator) -> tuple[float, float]:
    """Return the interval of the paired t-test over the accuracies of the seeds."""
    d = rule.mean(1) - baseline.mean(1)
    half = t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    return d.mean() - half, d.mean() + half


def satterthwaite(rule: Bits, baseline: Bits, rng: np.random.Generator) -> tuple[float, float]:
    """Return the interval that is usual in radiology: (A + max(B - E, 0)) / (S N), with Satterthwaite's degrees."""
    d = rule.astype(float) - baseline
    seeds, samples = d.shape
    mean, of_seeds, of_samples = d.mean(), d.mean(1), d.mean(0)
    a = samples * ((of_seeds - mean) ** 2).sum() / (seeds - 1)
    b = seeds * ((of_samples - mean) ** 2).sum() / (samples - 1)
    rest = d - of_seeds[:, None] - of_samples + mean
    total = a + max(b - (rest**2).sum() / ((seeds - 1) * (samples - 1)), 0)
    freedom = (seeds - 1) * (total / a) ** 2 if a else samples - 1
    half = t.ppf(0.975, min(freedom, samples - 1)) * (total / d.size) ** 0.5
    return mean - half, mean + half


def bootstrap(rule: Bits, baseline: Bits, rng: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval of resampled seeds and resampled samples."""
    d = rule.astype(int) - baseline  # [S, N]
    # Samples with the same differences count as one kind, which makes resampling fast: there are 3^S kinds.
    powers = 3 ** np.arange(len(d))
    counts = np.bincount((d + 1).T @ powers, minlength=3 ** len(d))
    kinds = np.arange(3 ** len(d)) // powers[:, None] % 3 - 1  # [S, 3^S]
    chosen = rng.integers(len(d), size=(RESAMPLES, len(d)))
    of_seeds = rng.multinomial(d.shape[1], counts / counts.sum(), RESAMPLES) @ kinds.T / d.shape[1]  # [RESAMPLES, S]
    means = np.take_along_axis(of_seeds, chosen, axis=1).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


METHODS: dict[str, Callable[[Bits, Bits, np.random.Generator], tuple[float, float]]] = {
    "bpfree": ours,
    "Satterthwaite": satterthwaite,
    "t over seeds": over_seeds,
    "bootstrap": bootstrap,
}


def coverage(
    setting: Setting, comparisons: int, seeds: int, methods: Sequence[str] = tuple(METHODS), draw: int = 0
) -> tuple[dict[str, float], float, float]:
    """Return the share of comparisons whose interval contains the true difference, for each method.

    Also returns the mean half width of the first method, and the share of the answers in which the two nets differ.
    """
    rng, resampling = np.random.default_rng([draw, 0]), np.random.default_rng([draw, 1])
    hits, width, differing = dict.fromkeys(methods, 0), 0.0, 0.0
    for _ in range(comparisons):
        rule, baseline, truth = simulate(setting, seeds, rng)
        differing += (rule != baseline).mean() / comparisons
        for name in methods:
            low, high = METHODS[name](rule, baseline, resampling)
            hits[name] += low <= truth <= high
            width += (high - low) / 2 / comparisons if name == methods[0] else 0
    return {name: hit / comparisons for name, hit in hits.items()}, width, differing


def main() -> None:
    """Print a Markdown table with a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="+", default=[360, 10_000])
    parser.add_argument("--draw", type=int, default=0, help="another number draws other comparisons")
    options = parser.parse_args()
    print("| accuracy | samples | spread | rules | differ, % | ± points |", " | ".join(METHODS), "|")
    print("|---" * (6 + len(METHODS)) + "|")
    for setting in settings(options.samples):
        rates, width, differing = coverage(setting, options.comparisons, options.seeds, draw=options.draw)
        cells = (*setting, f"{100 * differing:.1f}", f"{100 * width:.2f}", *(f"{100 * r:.1f}" for r in rates.values()))
        print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
