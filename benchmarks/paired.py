"""A test whether two runs differ on the same test split: McNemar's exact test on samples that only one predicts.

    python benchmarks/paired.py runs/a runs/b [--data-dir DIR]

The result holds for these two trained nets. For a statement about rules, compare several seeds.
"""

import argparse
from pathlib import Path

from scipy.stats import binomtest

import bpfree
from bpfree.data import DATASETS, data_directory


def main() -> None:
    """Evaluate both runs and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    right = []
    for folder in options.runs:
        run = bpfree.load(folder)
        test = DATASETS[run.config.data.name](data_directory(options.data_dir or run.config.data.dir)).test
        right.append(run.predict(test.x) == test.y)
        print(f"{folder}: {100 * float(right[-1].double().mean()):.2f} %")
    first, second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    print(f"correct only in the first: {first}, only in the second: {second}, p = {p:.3f}")


if __name__ == "__main__":
    main()
