"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test photographs of 32x32 colour pixels, in the binary layout.

A record is its label bytes and 3,072 pixel bytes: the red, green and blue plane, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). CIFAR-10 has one label, CIFAR-100 a coarse one before the fine one.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bpfree.data.dataset import Dataset, Split
from bpfree.data.download import Source, find
from bpfree.errors import UserError

SHAPE = (3, 32, 32)


class Layout(NamedTuple):
    """How a data set lies in its files.

    Attributes:
        files: the number of records in each, by name; the last file is the test split.
        labels: label bytes of a record; the last of them is the class.
        classes: C.
        source: where the files are.
    """

    files: dict[str, int]
    labels: int
    classes: int
    source: Source


def _source(name: str, folder: str, archive: str, md5: str, files: dict[str, int]) -> Source:
    return Source(
        folders=(name, folder, f"{name}/{folder}"),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        hashes={archive: f"md5:{md5}"},
        archive=archive,
        members=tuple(f"{folder}/{file}" for file in files),
    )


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
    ),
    "cifar100": Layout(
        files=_HALVES,
        labels=2,
        classes=100,
        source=_source(
            "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", _HALVES
        ),
    ),
}


def cifar10(data_dir: Path) -> Dataset:
    """Photographs of animals and vehicles (Krizhevsky 2009). Found in DATA/cifar10, else downloaded there."""
    return _load("cifar10", data_dir)


def cifar100(data_dir: Path) -> Dataset:
    """Photographs of 100 kinds of things, the fine labels (Krizhevsky 2009). Likewise in DATA/cifar100."""
    return _load("cifar100", data_dir)


def _load(name: str, data_dir: Path) -> Dataset:
    layout = LAYOUTS[name]
    *train, test = (_read(find(name, layout.source, file, data_dir), layout) for file in layout.files)
    return Dataset(name, Split(*map(torch.cat, zip(*train, strict=True))), test, layout.classes)


def _read(path: Path, layout: Layout) -> Split:
    """The records of one file.

    Raises:
        UserError: the file is of another size, or a label is no class.
    """
    records = layout.files[path.name]
    size, expected = path.stat().st_size, records * (layout.labels + int(np.prod(SHAPE)))
    if size != expected:
        raise UserError(f"{path}: truncated or corrupt: found {size} bytes, allowed: {expected}. Fetch it again")
    values = torch.from_numpy(np.fromfile(path, np.uint8)).view(records, -1)
    labels = values[:, layout.labels - 1].long()
    if (found := int(labels.max())) >= layout.classes:
        raise UserError(f"{path}: corrupt: found the label {found}, allowed: 0 to {layout.classes - 1}. Fetch it again")
    return Split(values[:, layout.labels :].reshape(records, *SHAPE), labels)
