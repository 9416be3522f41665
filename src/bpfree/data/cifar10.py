"""CIFAR-10: 50,000 training and 10,000 test photographs of 32x32 colour pixels, 10 classes, in the binary layout.

A file holds 10,000 records of 1 label byte and 3,072 pixel bytes: the red, green and blue plane, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from pathlib import Path

import numpy as np
import torch

from bpfree.data.dataset import Dataset, Split
from bpfree.data.download import Source, find
from bpfree.errors import UserError

TRAIN, TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
RECORDS, SHAPE = 10_000, (3, 32, 32)

CIFAR10 = Source(
    folders=("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    hashes={"cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
    archive="cifar-10-binary.tar.gz",
    members=tuple(f"cifar-10-batches-bin/{file}" for file in (*TRAIN, TEST)),
)


def cifar10(data_dir: Path) -> Dataset:
    """Photographs of animals and vehicles (Krizhevsky 2009). Found in DATA/cifar10, else downloaded there."""
    splits = [_read(find("cifar10", CIFAR10, file, data_dir)) for file in (*TRAIN, TEST)]
    train = Split(*(torch.cat(parts) for parts in zip(*splits[:-1], strict=True)))
    return Dataset("cifar10", train, splits[-1], classes=10)


def _read(path: Path) -> Split:
    """The records of one file.

    Raises:
        UserError: the file is of another size, or a label is no class.
    """
    size, expected = path.stat().st_size, RECORDS * (1 + int(np.prod(SHAPE)))
    if size != expected:
        raise UserError(f"{path}: truncated or corrupt: found {size} bytes, allowed: {expected}. Fetch it again")
    records = torch.from_numpy(np.fromfile(path, np.uint8)).view(RECORDS, -1)
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise UserError(f"{path}: corrupt: found the label {int(labels.max())}, allowed: 0 to 9. Fetch it again")
    return Split(records[:, 1:].reshape(RECORDS, *SHAPE), labels)
