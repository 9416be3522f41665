"""scikit-learn's diabetes data: 442 patients, ten measurements each, and the progress of the disease in one year.

Efron, Hastie, Johnstone, Tibshirani 2004, "Least Angle Regression", https://doi.org/10.1214/009053604000000067
"""

from pathlib import Path

import torch

from bpfree.data.dataset import Dataset
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.noise import Noise

_TEST = 88  # a fifth of the patients


def diabetes(data_dir: Path) -> Dataset:
    """Ten measurements of 354 training and 88 test patients; labels are numbers from 25 to 346. Needs no network.

    Measurements are standardised by the training patients. The data set has no official split. Ours is a fixed shuffle,
    so training never sees a test patient, whatever the seed.

    Args:
        data_dir: not used.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    x, y = torch.from_numpy(bunch.data).double(), torch.from_numpy(bunch.target).float()
    order = Noise(0).fold("diabetes").permutation(len(y))
    test, train = order[:_TEST], order[_TEST:]
    x = ((x - x[train].mean(0)) / x[train].std(0)).float()
    whole = Split(x, y)
    return Dataset("diabetes", whole.take(train), whole.take(test), Labels(0))
