"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 grey pixels, 10 classes, as IDX files."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bpfree.data.dataset import Dataset, Split
from bpfree.data.download import Source, find
from bpfree.data.idx import read_idx
from bpfree.errors import UserError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _source(folders: Sequence[str], mirrors: Sequence[str], md5: Sequence[str]) -> Source:
    hashes = {f"{name}.gz": f"md5:{value}" for name, value in zip(FILES, md5, strict=True)}
    return Source(tuple(folders), tuple(mirrors), hashes)


# Hashes of the .gz files as published by the authors and used by torchvision.
MNIST = _source(
    ["mnist", "MNIST/raw"],
    ["https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"],
    [
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ],
)
FASHION_MNIST = _source(
    ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"],
    ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
    [
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ],
)


def mnist(data_dir: Path) -> Dataset:
    """Handwritten digits (LeCun, Cortes, Burges 1998). Found in DATA/mnist, else downloaded there."""
    return _load("mnist", MNIST, data_dir)


def fashion_mnist(data_dir: Path) -> Dataset:
    """Pictures of clothes (Xiao, Rasul, Vollgraf 2017). Found in DATA/fashion_mnist, else downloaded there."""
    return _load("fashion_mnist", FASHION_MNIST, data_dir)


def _load(name: str, source: Source, data_dir: Path) -> Dataset:
    train_x, train_y, test_x, test_y = (find(name, source, f"{file}.gz", data_dir) for file in FILES)
    return Dataset(name, _split(train_x, train_y), _split(test_x, test_y), classes=10)


def _split(images: Path, labels: Path) -> Split:
    x, y = torch.from_numpy(read_idx(images)), torch.from_numpy(read_idx(labels))
    if x.dtype != torch.uint8 or x.dim() != 3:
        raise UserError(f"{images}: found {list(x.shape)} of {x.dtype}, allowed: images [N, height, width] of bytes")
    if y.dtype != torch.uint8 or y.shape != x.shape[:1]:
        raise UserError(f"{labels}: found {list(y.shape)} of {y.dtype}, allowed: {len(x)} labels, as many as images")
    return Split(x.unsqueeze(1), y.long())
