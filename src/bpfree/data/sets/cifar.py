"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test photographs of 32x32 colour pixels, in two layouts.

Binary: a record is its label bytes and 3,072 pixel bytes: the red, green and blue plane, row by row. CIFAR-10 has one
label, CIFAR-100 a coarse one before the fine one. Python: a pickled dict with the same pixels and labels as `data`
[N, 3072] and `labels` or `fine_labels` (https://www.cs.toronto.edu/~kriz/cifar.html). Hashes are those of that page and
of torchvision's source (torchvision/datasets/cifar.py, BSD).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, find, is_here
from bpfree.data.files.pickles import read_pickle
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError

SHAPE = (3, 32, 32)


class Layout(NamedTuple):
    """The layout of a data set in its files.

    Attributes:
        files: the number of records in each file, by its name; the last file is the test split.
        labels: the number of label bytes in a record; the last one is the class.
        classes: C.
        source: the places of the binary files.
        pickled: the places of the files for Python, which have the same names without the suffix.
        key: the key of the labels in the files for Python.
    """

    files: dict[str, int]
    labels: int
    classes: int
    source: Source
    pickled: Source
    key: str


def _source(name: str, folder: str, archive: str, md5: str, files: Iterable[str]) -> Source:
    """Return the places of files in an archive that has one hash as a whole."""
    return Source(
        folders=(name, folder, f"{name}/{folder}"),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        hashes={archive: f"md5:{md5}"},
        archive=archive,
        members=tuple(f"{folder}/{file}" for file in files),
    )


def _pickled(name: str, folder: str, archive: str, md5: str, files: dict[str, str]) -> Source:
    """Return the places of files in an archive; each file has a known hash, too, beside that of the archive."""
    source = _source(name, folder, archive, md5, files)
    return source._replace(hashes=source.hashes | {file: f"md5:{value}" for file, value in files.items()})


_BATCHES = {**{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000}
_HALVES = {"train.bin": 50_000, "test.bin": 10_000}

LAYOUTS = {
    "cifar10": Layout(
        files=_BATCHES,
        labels=1,
        classes=10,
        source=_source(
            "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", _BATCHES
        ),
        pickled=_pickled(
            "cifar10",
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
        key="labels",
    ),
    "cifar100": Layout(
        files=_HALVES,
        labels=2,
        classes=100,
        source=_source(
            "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", _HALVES
        ),
        pickled=_pickled(
            "cifar100",
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        ),
        key="fine_labels",
    ),
}


def cifar10(data_dir: Path) -> Dataset:
    """Photographs of animals and vehicles (Krizhevsky 2009). Read from DATA/cifar10, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    return _load("cifar10", data_dir)


def cifar100(data_dir: Path) -> Dataset:
    """Photographs of 100 kinds of things, fine labels (Krizhevsky 2009). In DATA/cifar100, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    return _load("cifar100", data_dir)


def _load(name: str, data_dir: Path) -> Dataset:
    """Read the layout that is on the disk; download the binary one if neither is."""
    layout = LAYOUTS[name]
    # Nobody should download 170 MB again because they have the other layout of the same images.
    read = _read
    files, source = {file: file for file in layout.files}, layout.source
    if not is_here(source, data_dir) and is_here(layout.pickled, data_dir):
        read = _read_pickled
        files, source = {file: file.removesuffix(".bin") for file in layout.files}, layout.pickled
    # A dict keeps the order of `Layout.files`, in which the test split is last.
    *train, test = (
        read(find(name, source, file, data_dir), layout.files[binary], layout) for binary, file in files.items()
    )
    return Dataset(name, Split(*map(torch.cat, zip(*train, strict=True))), test, Labels(layout.classes))


def _read(path: Path, records: int, layout: Layout) -> Split:
    """Return the records of one binary file.

    Raises:
        UserError: the file has another size, or a label is not a class.
    """
    # The size comes first: a truncated file would else fail in `view`, with an error about shapes.
    size, expected = path.stat().st_size, records * (layout.labels + int(np.prod(SHAPE)))
    if size != expected:
        raise UserError(f"{path}: truncated or corrupt: found {size} bytes, allowed: {expected}. Fetch it again")
    values = torch.from_numpy(np.fromfile(path, np.uint8)).view(records, -1)  # [N, labels + 3072]
    return _checked(path, values[:, layout.labels :], values[:, layout.labels - 1].long(), layout.classes)


def _read_pickled(path: Path, records: int, layout: Layout) -> Split:
    """Return the records of one file for Python.

    Raises:
        UserError: the file is damaged, would execute code, or has other records.
    """
    content = read_pickle(path)
    x, y = content.get("data"), content.get(layout.key)
    width = int(np.prod(SHAPE))
    if not isinstance(x, np.ndarray) or x.shape != (records, width):
        found = list(x.shape) if isinstance(x, np.ndarray) else type(x).__name__
        raise UserError(f"{path}: corrupt: found data {found}, allowed: [{records}, {width}]. Fetch it again")
    # Python integers have any length. Without the limit, torch would raise an OverflowError for a very long one.
    if not isinstance(y, list) or len(y) != records or not all(isinstance(v, int) and abs(v) < 1 << 31 for v in y):
        raise UserError(f"{path}: corrupt: {layout.key} is not a list of {records} class numbers. Fetch it again")
    # A copy: the array lies in the bytes of the pickle, which are read-only, and torch warns about such memory.
    return _checked(path, torch.from_numpy(x.copy()), torch.tensor(y), layout.classes)


def _checked(path: Path, x: torch.Tensor, y: torch.Tensor, classes: int) -> Split:
    """Return images and labels as a split, or raise UserError for a label that is not a class."""
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise UserError(
            f"{path}: corrupt: found the label {int(wrong[0])}, allowed: 0 to {classes - 1}. Fetch it again"
        )
    return Split(x.reshape(len(y), *SHAPE), y.long())  # [N, 3, 32, 32]
