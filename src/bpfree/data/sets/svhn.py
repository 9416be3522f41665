"""SVHN: house numbers from street photographs, cropped to 32x32 colour pixels, as MATLAB files.

A file has X [height, width, 3, N] and y [N, 1], in which 10 stands for the digit 0 (http://ufldl.stanford.edu/housenumbers).
Hashes are those of torchvision's source (torchvision/datasets/svhn.py, BSD).
"""

import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, find
from bpfree.data.files.hashes import check_hash
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError

_FOLDERS = ("svhn", "SVHN", "")
_MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
SVHN = Source(
    _FOLDERS,
    _MIRRORS,
    {
        "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
    },
)
EXTRA = Source(_FOLDERS, _MIRRORS, {"extra_32x32.mat": "md5:a93ce644f1a588dc4d68dda5feec44a7"})
_MOST = 1_000_000  # images in a file; memory is not taken for a header that claims more
# Exceptions that scipy raises for damaged files or other formats, beside its own MatReadError.
_BROKEN = (ValueError, TypeError, LookupError, EOFError, NotImplementedError, MemoryError, zlib.error)


def svhn(data_dir: Path, *, extra: bool = False) -> Dataset:
    """House numbers from street photographs (Netzer et al. 2011). Read from DATA/svhn, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.
        extra: True to add 531,131 further and easier training images, a download of 1.3 GB.

    Raises:
        UserError: a file cannot be downloaded, or is not the published one.
    """
    train, test = _splits(SVHN, data_dir)
    if extra:
        further = _splits(EXTRA, data_dir)
        train = Split(*map(torch.cat, zip(train, *further, strict=True)))
    return Dataset("svhn", train, test, Labels(10))


def _splits(source: Source, data_dir: Path) -> list[Split]:
    return [_read(find("svhn", source, file, data_dir), known_hash) for file, known_hash in source.hashes.items()]


def _read(path: Path, known_hash: str) -> Split:
    """Return the images and labels of one file.

    Raises:
        UserError: the file is not the published one, is not a MATLAB file, or has other variables.
    """
    from scipy.io import loadmat, whosmat  # scipy takes long to import, and only this reader needs it
    from scipy.io.matlab import MatReadError

    check_hash(path, known_hash)  # scipy may crash the process on a damaged file, so the hash comes first
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns about variables that are not read
            _check_header({name: (shape, kind) for name, shape, kind in whosmat(str(path))})
            values = loadmat(str(path), variable_names=["X", "y"])
        x, y = values["X"], values["y"].reshape(-1).astype(np.int64)
        if y.min() < 1 or y.max() > 10:
            raise ValueError(f"found labels from {y.min()} to {y.max()}, allowed: 1 to 10")
    except (MatReadError, *_BROKEN) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: truncated, corrupt or not a MATLAB file of version 5 ({reason}). Fetch it again"
        ) from error
    return Split(torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1))), torch.from_numpy(y % 10))


def _check_header(variables: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Raise ValueError unless the header has images and labels; memory for them is not taken yet."""
    shape, kind = variables.get("X", ((), "nothing"))
    if kind != "uint8" or len(shape) != 4 or shape[:3] != (32, 32, 3) or not 0 < shape[3] <= _MOST:
        raise ValueError(f"found X {list(shape)} of {kind}, allowed: [32, 32, 3, N] of uint8")
    labels, kind = variables.get("y", ((), "nothing"))
    if labels not in ((shape[3], 1), (1, shape[3])) or kind not in ("uint8", "double"):
        raise ValueError(f"found y {list(labels)} of {kind}, allowed: [{shape[3]}, 1] of uint8")
