"""Data sets, one reader per format. `DATASETS` is the table that the config goes by."""

from collections.abc import Callable

from bpfree.data.arrays import from_python
from bpfree.data.batches import Augment, Batches
from bpfree.data.cifar import cifar10, cifar100
from bpfree.data.dataset import Dataset, Preprocess, Split
from bpfree.data.digits import digits
from bpfree.data.download import data_directory
from bpfree.data.mnist import fashion_mnist, mnist

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}

__all__ = [
    "DATASETS",
    "Augment",
    "Batches",
    "Dataset",
    "Preprocess",
    "Split",
    "data_directory",
    "from_python",
]
