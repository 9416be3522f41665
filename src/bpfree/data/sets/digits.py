"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, embedded in the package."""

from pathlib import Path

import torch

from bpfree.data.dataset import Dataset, Split
from bpfree.noise import Noise

_TEST = 360  # a fifth, chosen once for all


def digits(data_dir: Path) -> Dataset:
    """1,437 training and 360 test images [1, 8, 8] with values 0..16, 10 classes; needs no network.

    The set has no official split. Ours is a fixed shuffle, so a test image is never trained on, whatever the seed.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = Noise(0).fold("digits").permutation(len(y))
    whole = Split(x, y)
    return Dataset("digits", whole.take(order[_TEST:]), whole.take(order[:_TEST]), classes=10, white=16.0)
