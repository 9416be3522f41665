"""scikit-learn's diabetes: 442 patients, ten measurements each, and how far the disease went in a year; embedded.

Efron, Hastie, Johnstone, Tibshirani 2004, "Least Angle Regression", https://doi.org/10.1214/009053604000000067
"""

from pathlib import Path

import torch

from bpfree.data.dataset import Dataset, Split
from bpfree.noise import Noise

_TEST = 88  # a fifth, chosen once for all


def diabetes(data_dir: Path) -> Dataset:
    """354 training and 88 test patients [10], standardised by the training ones; labels from 25 to 346, no classes.

    The set has no official split. Ours is a fixed shuffle, so a test patient is never trained on, whatever the seed.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    x, y = torch.from_numpy(bunch.data).double(), torch.from_numpy(bunch.target).float()
    order = Noise(0).fold("diabetes").permutation(len(y))
    test, train = order[:_TEST], order[_TEST:]
    x = ((x - x[train].mean(0)) / x[train].std(0)).float()
    whole = Split(x, y)
    return Dataset("diabetes", whole.take(train), whole.take(test), classes=0)
