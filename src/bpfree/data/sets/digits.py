"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, which come with the package."""

from pathlib import Path

import torch

from bpfree.data.dataset import Dataset
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.noise import Noise

_TEST = 360  # a fifth of the images


def digits(data_dir: Path) -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images [1, 8, 8] with values 0 to 16. Needs no network.

    The data set has no official split. Ours is a fixed shuffle, so training never sees a test image, whatever the seed.

    Args:
        data_dir: not used.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = Noise(0).fold("digits").permutation(len(y))
    whole = Split(x, y)
    return Dataset("digits", whole.take(order[_TEST:]), whole.take(order[:_TEST]), Labels(10), white=16.0)
