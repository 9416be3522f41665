"""Data sets, one reader per format. `DATASETS` is the table that the config goes by."""

from collections.abc import Callable

from bpfree.data.arrays import from_python
from bpfree.data.augment import Augment
from bpfree.data.batches import Batches
from bpfree.data.dataset import Dataset, Preprocess, Split
from bpfree.data.files.download import data_directory
from bpfree.data.sets.array_files import arrays as array_files  # a submodule has that name
from bpfree.data.sets.cifar import cifar10, cifar100
from bpfree.data.sets.diabetes import diabetes
from bpfree.data.sets.digits import digits
from bpfree.data.sets.facts import FACTS, Facts
from bpfree.data.sets.image_folder import folder
from bpfree.data.sets.lorenz import lorenz
from bpfree.data.sets.mnist import emnist, fashion_mnist, kmnist, mnist
from bpfree.data.sets.photographs import caltech256, eurosat
from bpfree.data.sets.stl10 import stl10
from bpfree.data.sets.svhn import svhn
from bpfree.data.sets.table import table

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "diabetes": diabetes,
    "lorenz": lorenz,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "kmnist": kmnist,
    "emnist": emnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "eurosat": eurosat,
    "caltech256": caltech256,
    "stl10": stl10,
    "folder": folder,
    "arrays": array_files,
    "table": table,
}

__all__ = [
    "DATASETS",
    "FACTS",
    "Augment",
    "Batches",
    "Dataset",
    "Facts",
    "Preprocess",
    "Split",
    "data_directory",
    "from_python",
]
