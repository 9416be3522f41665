"""STL-10: 5,000 training and 8,000 test photographs of 96x96 colour pixels, in its binary layout.

Images are bytes without gaps: the red, green and blue plane, each column by column. Labels run from 1
(https://cs.stanford.edu/~acoates/stl10). Hashes are those of torchvision's source (torchvision/datasets/stl10.py, BSD).
"""

from pathlib import Path

import numpy as np
import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, find
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError

SHAPE = (3, 96, 96)
CLASSES = 10
COUNTS = {"train": 5_000, "test": 8_000}
STL10 = Source(
    folders=("stl10", "stl10_binary", "stl10/stl10_binary"),
    mirrors=("http://ai.stanford.edu/~acoates/stl10/", "https://cs.stanford.edu/~acoates/stl10/"),
    hashes={
        "stl10_binary.tar.gz": "md5:91f7769df0f17e558f3565bffb0c7dfb",
        "train_X.bin": "md5:918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "md5:5a34089d4802c674881badbb80307741",
        "test_X.bin": "md5:7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "md5:36f9794fa4beb8a2c72628de14fa638e",
    },
    archive="stl10_binary.tar.gz",
    members=tuple(f"stl10_binary/{part}_{what}.bin" for part in COUNTS for what in "Xy"),
)


def stl10(data_dir: Path) -> Dataset:
    """Photographs of animals and vehicles, few but large (Coates, Ng, Lee 2011). Images without labels are left out.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    train, test = (_split(part, data_dir) for part in COUNTS)
    return Dataset("stl10", train, test, Labels(CLASSES))


def _split(part: str, data_dir: Path) -> Split:
    """Return the split "train" or "test" from its two files, with labels from 0."""
    n = COUNTS[part]
    images, labels = (find("stl10", STL10, f"{part}_{what}.bin", data_dir) for what in "Xy")
    x = _bytes(images, n * int(np.prod(SHAPE))).view(n, *SHAPE).transpose(2, 3)  # the file stores columns
    y = _bytes(labels, n).long() - 1
    if int(y.min()) < 0 or int(y.max()) >= CLASSES:
        raise UserError(
            f"{labels}: corrupt: found labels from {int(y.min()) + 1} to {int(y.max()) + 1}, allowed: 1 to {CLASSES}. "
            "Fetch it again"
        )
    return Split(x.contiguous(), y)


def _bytes(path: Path, expected: int) -> torch.Tensor:
    """Return the bytes of a file, or raise UserError if their number is not the expected one."""
    if (size := path.stat().st_size) != expected:
        raise UserError(f"{path}: truncated or corrupt: found {size} bytes, allowed: {expected}. Fetch it again")
    return torch.from_numpy(np.fromfile(path, np.uint8))
