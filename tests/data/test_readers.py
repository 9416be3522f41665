"""Readers of one data set each, against files of its layout: KMNIST, EMNIST, SVHN, STL-10, CIFAR for Python."""

import gzip
import hashlib
import pickle
import sys

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bpfree.data import DATASETS
from bpfree.data.sets import cifar
from bpfree.errors import UserError
from tests.data.test_archives import tarred, zipped
from tests.data.test_idx import idx, write_mnist
from tests.data.test_pickles import array, short

mnist, stl10, svhn = (sys.modules[f"bpfree.data.sets.{name}"] for name in ("mnist", "stl10", "svhn"))
RNG = np.random.default_rng(0)
OFFICIAL = dict(cifar.LAYOUTS)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    nowhere = ("http://127.0.0.1:1/",)
    monkeypatch.setattr("bpfree.data.files.transfer.WAITS", ())
    for module, name in ((mnist, "KMNIST"), (mnist, "EMNIST"), (svhn, "SVHN"), (svhn, "EXTRA"), (stl10, "STL10")):
        monkeypatch.setattr(module, name, getattr(module, name)._replace(mirrors=nowhere))
    for name, layout in OFFICIAL.items():
        small = layout._replace(
            files=dict.fromkeys(layout.files, 6),
            source=layout.source._replace(mirrors=nowhere),
            pickled=layout.pickled._replace(mirrors=nowhere),
        )
        monkeypatch.setitem(cifar.LAYOUTS, name, small)


@pytest.mark.parametrize("folder", ["kmnist", "KMNIST/raw"])
def test_kmnist(folder, tmp_path):
    write_mnist(tmp_path / folder)
    dataset = DATASETS["kmnist"](tmp_path)
    assert (dataset.name, dataset.classes, dataset.train.x.shape) == ("kmnist", 10, (40, 1, 28, 28))


def emnist_files(n=30):
    """As NIST has them: each image is stored column by column."""
    files, upright = {}, {}
    for part, size in (("train", n), ("test", n // 3)):
        x, y = RNG.integers(0, 256, (size, 28, 28)), RNG.integers(0, 47, size)
        upright[part] = x, y
        files[f"emnist-balanced-{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(x.transpose(0, 2, 1)))
        files[f"emnist-balanced-{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(y))
    return files, upright


def test_emnist_is_put_upright_and_unpacked_from_its_zip(tmp_path):
    files, upright = emnist_files()
    others = {"gzip/emnist-letters-train-labels-idx1-ubyte.gz": b"", "gzip/../../evil": b"evil"}
    (tmp_path / "gzip.zip").write_bytes(zipped({**others, **{f"gzip/{name}": data for name, data in files.items()}}))
    dataset = DATASETS["emnist"](tmp_path)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.x[:, 0], upright[part][0])
        np.testing.assert_array_equal(split.y, upright[part][1])
    assert dataset.classes == 47
    assert {path.name for path in (tmp_path / "emnist").iterdir()} == set(files)
    assert not list(tmp_path.rglob("evil"))


def test_emnist_unzipped(tmp_path):
    files, upright = emnist_files()
    (tmp_path / "EMNIST" / "raw").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "EMNIST" / "raw" / name.removesuffix(".gz")).write_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(DATASETS["emnist"](tmp_path).train.x[:, 0], upright["train"][0])


def write_svhn(folder, **changes):
    """X [32, 32, 3, N] and y [N, 1], in which 10 stands for 0, as MATLAB's format 5, compressed."""
    folder.mkdir(parents=True)
    written = {}
    for i, part in enumerate(("train", "test", "extra")):
        x = np.random.default_rng(i).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        y = (np.arange(20, dtype=np.uint8) % 10 + 1)[:, None]
        written[part] = x, y
        savemat(folder / f"{part}_32x32.mat", {"X": x, "y": y, **changes}, do_compression=True)
    return written


def publish(folder, monkeypatch):
    """As if what lies there were the published files."""
    for name in ("SVHN", "EXTRA"):
        source = getattr(svhn, name)
        digests = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in source.hashes}
        monkeypatch.setattr(svhn, name, source._replace(hashes={k: f"md5:{v}" for k, v in digests.items()}))


@pytest.mark.parametrize("folder", ["svhn", "SVHN", "."])
def test_svhn(folder, tmp_path, monkeypatch):
    written = write_svhn(tmp_path / "data" / folder)
    publish(tmp_path / "data" / folder, monkeypatch)
    dataset = DATASETS["svhn"](tmp_path / "data")
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        x, y = written[part]
        assert split.x.is_contiguous()
        np.testing.assert_array_equal(split.x[7], x[..., 7].transpose(2, 0, 1))
        assert split.y.tolist() == [label % 10 for label in y[:, 0].tolist()]
    more = DATASETS["svhn"](tmp_path / "data", extra=True)
    assert len(more.train.y) == 40
    np.testing.assert_array_equal(more.train.x[20], written["extra"][0][..., 0].transpose(2, 0, 1))
    assert torch.equal(more.test.x, dataset.test.x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 20))}, r"found X \[32, 32, 3, 20\] of double"),
        ({"X": np.zeros((32, 32, 20), np.uint8)}, r"found X \[32, 32, 20\] of uint8"),
        ({"X": "text"}, "found X .* of char"),
        ({"y": np.ones((19, 1), np.uint8)}, r"found y \[19, 1\] of uint8, allowed: \[20, 1\]"),
        ({"y": np.array([[11]] * 20, np.uint8)}, "found labels from 11 to 11, allowed: 1 to 10"),
        ({"y": np.array([[0]] * 20, np.uint8)}, "found labels from 0 to 0"),
        ({"y": {"a": 1}}, "found y .* of struct"),
    ],
)
def test_a_matlab_file_of_other_variables(changes, message, tmp_path, monkeypatch):
    write_svhn(tmp_path / "svhn", **changes)
    publish(tmp_path / "svhn", monkeypatch)
    with pytest.raises(UserError, match=rf"train_32x32.mat: truncated, corrupt or not a MATLAB file.* \({message}"):
        DATASETS["svhn"](tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "header", "half", "flipped", "short", "hdf5"])
def test_a_damaged_matlab_file(damage, tmp_path, monkeypatch):
    """Of some, scipy would crash; so it is given none but the published ones."""
    write_svhn(tmp_path / "svhn")
    publish(tmp_path / "svhn", monkeypatch)
    path = tmp_path / "svhn" / "test_32x32.mat"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello" * 100,
            "header": whole[:128],
            "half": whole[: len(whole) // 2],
            "flipped": whole[:2000] + bytes(b ^ 255 for b in whole[2000:3000]) + whole[3000:],
            "short": whole[:60],
            "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600),
        }[damage]
    )
    with pytest.raises(UserError, match=r"test_32x32.mat: found the md5 .*, as published. Delete it"):
        DATASETS["svhn"](tmp_path)
    publish(tmp_path / "svhn", monkeypatch)
    with pytest.raises(
        UserError, match=r"test_32x32.mat: truncated, corrupt or not a MATLAB file of version 5"
    ) as caught:
        DATASETS["svhn"](tmp_path)
    assert "\n" not in str(caught.value)


def stl10_files(train=7, test=5):
    files, images = {}, {}
    for part, n in (("train", train), ("test", test)):
        x, y = RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10 + 1
        images[part] = x, y
        files[f"{part}_X.bin"] = x.transpose(0, 1, 3, 2).tobytes()
        files[f"{part}_y.bin"] = y.tobytes()
    return files, images


@pytest.fixture
def small_stl10(monkeypatch):
    monkeypatch.setattr(stl10, "COUNTS", {"train": 7, "test": 5})


@pytest.mark.parametrize("packed", [True, False])
def test_stl10_columns_become_rows_and_labels_begin_at_0(packed, small_stl10, tmp_path):
    files, images = stl10_files()
    inside = {f"stl10_binary/{name}": data for name, data in files.items()}
    if packed:
        inside = {"stl10_binary/unlabeled_X.bin": bytes(100_000), **inside}
        (tmp_path / "stl10_binary.tar.gz").write_bytes(tarred(inside, "w:gz"))
    else:
        (tmp_path / "stl10_binary").mkdir()
        for name, data in inside.items():
            (tmp_path / name).write_bytes(data)
    dataset = DATASETS["stl10"](tmp_path)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.x, images[part][0])
        np.testing.assert_array_equal(split.y, images[part][1].astype(int) - 1)
    assert not list(tmp_path.rglob("unlabeled*"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "train_X.bin",
            bytes(7 * 27_648 - 1),
            "train_X.bin: truncated or corrupt: found 193535 bytes, allowed: 193536",
        ),
        ("test_y.bin", b"", "test_y.bin: truncated or corrupt: found 0 bytes, allowed: 5"),
        ("test_y.bin", b"\1\2\3\4\0", "test_y.bin: corrupt: found labels from 0 to 4, allowed: 1 to 10"),
        ("train_y.bin", b"\1\2\3\4\5\6\x0b", "train_y.bin: corrupt: found labels from 1 to 11"),
    ],
)
def test_broken_files_of_stl10(file, content, message, small_stl10, tmp_path):
    (tmp_path / "stl10").mkdir()
    for name, data in {**stl10_files()[0], file: content}.items():
        (tmp_path / "stl10" / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        DATASETS["stl10"](tmp_path)


def test_the_official_sizes_of_stl10():
    assert {part: n * 3 * 96 * 96 for part, n in stl10.COUNTS.items()} == {"train": 138_240_000, "test": 221_184_000}


def python_batches(name, protocol):
    """The files of CIFAR for Python: of Python 2 (None), or by a protocol of pickle."""
    layout, files, images = OFFICIAL[name], {}, {}
    for i, file in enumerate(layout.files):
        known = file.removesuffix(".bin")
        x = np.random.default_rng(i).integers(0, 256, (6, 3072), dtype=np.uint8)
        y = [(7 * i + j) % layout.classes for j in range(6)]
        images[known] = x, y
        if protocol is None:
            numbers = b"](" + b"".join(b"K" + bytes([label]) for label in y) + b"e"
            files[known] = b"\x80\x02}(" + short(b"data") + array(x) + short(layout.key.encode()) + numbers + b"u."
        else:
            files[known] = pickle.dumps({b"data": x, layout.key.encode(): y, b"filenames": [b"a.png"] * 6}, protocol)
    return files, images


FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.mark.parametrize("protocol", [None, 2, 4])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FOLDERS)
def test_cifar_for_python(name, packed, protocol, tmp_path):
    files, images = python_batches(name, protocol)
    inside = {f"{FOLDERS[name]}/{file}": data for file, data in files.items()}
    if packed:
        (tmp_path / OFFICIAL[name].pickled.archive).write_bytes(tarred(inside, "w:gz"))
    else:
        (tmp_path / FOLDERS[name]).mkdir()
        for file, data in inside.items():
            (tmp_path / file).write_bytes(data)
    for _ in range(2):
        dataset = DATASETS[name](tmp_path)
        *train, test = images.values()
        np.testing.assert_array_equal(dataset.train.x.flatten(1), np.concatenate([x for x, _ in train]))
        assert dataset.train.y.tolist() == [label for _, labels in train for label in labels]
        np.testing.assert_array_equal(dataset.test.x.flatten(1), test[0])
        assert dataset.test.x.shape == (6, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((5, 3072), np.uint8)}, r"test: corrupt: found data \[5, 3072\], allowed: \[6, 3072\]"),
        ({b"data": [1, 2]}, "test: corrupt: found data list"),
        ({b"data": np.zeros((6, 3072))}, "test: not a pickle that bpfree reads .it has an array of .*f8"),
        ({b"fine_labels": [0] * 5}, "test: corrupt: fine_labels is not a list of 6 class numbers"),
        ({b"fine_labels": [b"x"] * 6}, "test: corrupt: fine_labels is not a list of 6 class numbers"),
        ({b"fine_labels": [0] * 5 + [100]}, "test: corrupt: found the label 100, allowed: 0 to 99"),
        ({b"fine_labels": [0] * 5 + [-1]}, "test: corrupt: found the label -1"),
        ({b"fine_labels": [0] * 5 + [1 << 80]}, "test: corrupt: fine_labels is not a list of 6 class numbers"),
    ],
)
def test_broken_batches_for_python(change, message, tmp_path):
    files, images = python_batches("cifar100", 2)
    (tmp_path / "cifar-100-python").mkdir()
    x, y = images["test"]
    files["test"] = pickle.dumps({b"data": x, b"fine_labels": y, **change}, 2)
    for file, data in files.items():
        (tmp_path / "cifar-100-python" / file).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        DATASETS["cifar100"](tmp_path)
    assert "\n" not in str(caught.value)


def test_the_binary_layout_comes_first_and_is_what_is_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"cifar-100-binary.tar.gz is not in"):
        DATASETS["cifar100"](tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"alone")
    with pytest.raises(UserError, match=r"cifar-100-binary.tar.gz is not in"):
        DATASETS["cifar100"](tmp_path)
