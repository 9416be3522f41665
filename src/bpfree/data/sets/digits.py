"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, which come with the package."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    x, y = _read()
    order = Noise(0).fold("digits").permutation(len(y))
    whole = Split(x, y)
    return Dataset("digits", whole.take(order[_TEST:]), whole.take(order[:_TEST]), Labels(10), white=16.0)


def _read() -> tuple[Tensor, Tensor]:
    """Return the images [1797, 1, 8, 8] and labels [1797] of scikit-learn."""
    # Importing scikit-learn takes 2 seconds and brings SciPy and pandas, and a training needs this one file of it.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        x, y = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    else:  # a version of scikit-learn that keeps it elsewhere
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x.reshape(-1, 8, 8)
    return torch.from_numpy(x).to(torch.uint8).unsqueeze(1), torch.from_numpy(y).long()
