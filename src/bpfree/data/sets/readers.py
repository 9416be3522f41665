"""The table `DATASETS`: the reader of each data set, by the name that a config gives under `data.name`.

The table is a module of its own and not in `__init__`, so that modules of this folder can import it.
"""

from collections.abc import Callable

from bpfree.data.dataset import Dataset
from bpfree.data.sets.array_files import arrays
from bpfree.data.sets.cifar import cifar10, cifar100
from bpfree.data.sets.diabetes import diabetes
from bpfree.data.sets.digits import digits
from bpfree.data.sets.image_folder import folder
from bpfree.data.sets.lorenz import lorenz
from bpfree.data.sets.mnist import emnist, fashion_mnist, kmnist, mnist
from bpfree.data.sets.parquet_shards import parquet
from bpfree.data.sets.photographs import caltech256, eurosat
from bpfree.data.sets.sentences import sst2
from bpfree.data.sets.stl10 import stl10
from bpfree.data.sets.svhn import svhn
from bpfree.data.sets.table import table
from bpfree.data.sets.tar_shards import webdataset
from bpfree.data.sets.text import enwik8, text, text8, tinyshakespeare, wikitext103

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
    "tinyshakespeare": tinyshakespeare,
    "text8": text8,
    "enwik8": enwik8,
    "wikitext103": wikitext103,
    "sst2": sst2,
    "folder": folder,
    "arrays": arrays,
    "table": table,
    "text": text,
    "webdataset": webdataset,
    "parquet": parquet,
}
"""Readers by name. A reader takes the data directory, then options by keyword, which are keys of the section `data`."""
