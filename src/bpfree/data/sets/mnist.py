"""MNIST and its successors Fashion-MNIST, KMNIST and EMNIST: IDX files of 28x28 grey pixels.

Addresses and hashes are those of torchvision's source (torchvision/datasets/mnist.py, BSD), which the authors publish.
Further mirrors belong to the authors, too. Hashes of the unzipped files are those of copies from several other places,
which are equal.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, find
from bpfree.data.files.idx import read_idx
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMNIST_FILES = tuple(f"emnist-balanced-{file.replace('t10k', 'test')}.gz" for file in FILES)


def _source(folders: Sequence[str], mirrors: Sequence[str], md5: Sequence[str], contents: Sequence[str] = ()) -> Source:
    """Return the places of the four files, with hashes of the .gz files and of their contents, as in FILES."""
    hashes = {f"{name}.gz": f"md5:{value}" for name, value in zip(FILES, md5, strict=True)}
    # For some data sets no hashes of contents are known, and then `contents` is empty.
    unzipped = {name: f"md5:{value}" for name, value in zip(FILES, contents, strict=False)}
    return Source(tuple(folders), tuple(mirrors), hashes, contents=unzipped)


MNIST = _source(
    ["mnist", "MNIST/raw"],
    ["https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"],
    [
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ],
    [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ],
)
FASHION_MNIST = _source(
    ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"],
    [
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ],
    [
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ],
    [
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ],
)
KMNIST = _source(
    ["kmnist", "KMNIST/raw"],
    ["http://codh.rois.ac.jp/kmnist/dataset/kmnist/"],
    [
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ],
)
EMNIST = Source(
    folders=("emnist", "emnist/gzip", "EMNIST/raw", "EMNIST/raw/gzip"),
    mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/", "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"),
    hashes={"gzip.zip": "md5:58c8d27c78d21e728a6bc7b3cc06412e"},
    archive="gzip.zip",
    members=tuple(f"gzip/{file}" for file in EMNIST_FILES),
)


def mnist(data_dir: Path) -> Dataset:
    """Handwritten digits (LeCun, Cortes, Burges 1998). Read from DATA/mnist, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    return _load("mnist", MNIST, data_dir)


def fashion_mnist(data_dir: Path) -> Dataset:
    """Pictures of clothes (Xiao, Rasul, Vollgraf 2017). Read from DATA/fashion_mnist, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    return _load("fashion_mnist", FASHION_MNIST, data_dir)


def kmnist(data_dir: Path) -> Dataset:
    """Cursive Japanese characters (Clanuwat et al. 2018). Read from DATA/kmnist, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    return _load("kmnist", KMNIST, data_dir)


def emnist(data_dir: Path) -> Dataset:
    """Handwritten digits and letters, 47 balanced classes (Cohen et al. 2017). In DATA/emnist, or downloaded.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    train_x, train_y, test_x, test_y = (find("emnist", EMNIST, file, data_dir) for file in EMNIST_FILES)
    return Dataset("emnist", _upright(_split(train_x, train_y)), _upright(_split(test_x, test_y)), Labels(47))


def _load(name: str, source: Source, data_dir: Path) -> Dataset:
    """Return a data set of ten classes in the four files of MNIST."""
    train_x, train_y, test_x, test_y = (find(name, source, f"{file}.gz", data_dir) for file in FILES)
    return Dataset(name, _split(train_x, train_y), _split(test_x, test_y), Labels(10))


def _upright(split: Split) -> Split:
    """Return the images with rows and columns exchanged: EMNIST's files store them column by column."""
    return Split(split.tensor.transpose(2, 3).contiguous(), split.y)


def _split(images: Path, labels: Path) -> Split:
    """Return the split in a file of images and a file of labels, or raise UserError if they hold anything else."""
    x, y = torch.from_numpy(read_idx(images)), torch.from_numpy(read_idx(labels))
    if x.dtype != torch.uint8 or x.dim() != 3:
        raise UserError(f"{images}: found {list(x.shape)} of {x.dtype}, allowed: images [N, height, width] of bytes")
    if y.dtype != torch.uint8 or y.shape != x.shape[:1]:
        raise UserError(f"{labels}: found {list(y.shape)} of {y.dtype}, allowed: {len(x)} labels, as many as images")
    return Split(x.unsqueeze(1), y.long())  # [N, 1, 28, 28]
