"""The IDX reader against files of the official format, whole and broken."""

import gzip
import struct

import numpy as np
import pytest

from bpfree.data import DATASETS
from bpfree.data.files.idx import read_idx
from bpfree.data.sets.mnist import FILES
from bpfree.errors import UserError

TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx(values: np.ndarray, code: int = 8) -> bytes:
    return (
        struct.pack(f">4B{values.ndim}i", 0, 0, code, values.ndim, *values.shape) + values.astype(TYPES[code]).tobytes()
    )


def write_mnist(folder, n=40, labels=None, gzipped=True):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n) if labels is None else np.asarray(labels)
    for name, values in zip(FILES, [rng.integers(0, 256, (n, 28, 28)), y] * 2, strict=True):
        data = idx(values)
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(data) if gzipped else data)


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_and_rank(code, zipped, tmp_path):
    for shape in [(5,), (3, 4), (2, 3, 4)]:
        values = (np.arange(np.prod(shape)) % 100).reshape(shape)
        data = idx(values, code)
        (tmp_path / "file").write_bytes(gzip.compress(data) if zipped else data)
        found = read_idx(tmp_path / "file")
        assert found.dtype == np.dtype(TYPES[code]).newbyteorder("=")
        np.testing.assert_array_equal(found, values)


GOOD = idx(np.arange(60).reshape(3, 4, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"PK\x03\x04 zip", "not an IDX file: it begins with 50 4b"),
        (b"\0\0\x07\x01" + bytes(8), "not an IDX file"),
        (b"\0\0\x08\xff" + struct.pack(">i", 1) * 255 + b"x", "not an IDX file"),
        (GOOD[:10], "truncated: it ends within its header"),
        (GOOD[:-1], "truncated or corrupt: 59 bytes of values, its header says 60"),
        (GOOD + b"x", "more than 60 bytes of values"),
        (b"\0\0\x08\x02" + struct.pack(">2i", 1 << 20, 1 << 20), "corrupt: its header claims the shape"),
        (b"\0\0\x08\x01" + struct.pack(">i", -5), "corrupt: its header claims the shape"),
        (gzip.compress(GOOD)[:-9], "corrupt or truncated gzip file"),
        (gzip.compress(GOOD)[:-6] + b"\xff" * 6, "corrupt or truncated gzip file"),
        (b"\x1f\x8b not gzip at all", "corrupt or truncated gzip file"),
    ],
    ids=range(12),
)
def test_broken_files_are_named(data, message, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_a_data_set_is_found_where_people_keep_it(folder, gzipped, tmp_path):
    write_mnist(tmp_path / folder, gzipped=gzipped)
    dataset = DATASETS["mnist"](tmp_path)
    assert dataset.train.x.shape == (40, 1, 28, 28)
    assert dataset.classes == 10


def test_labels_out_of_range_and_of_another_length(tmp_path):
    write_mnist(tmp_path / "a" / "mnist", labels=[11] * 40)
    with pytest.raises(UserError, match=r"labels run from 11 to 11, allowed: 0 to 9"):
        DATASETS["mnist"](tmp_path / "a")
    write_mnist(tmp_path / "b" / "mnist", labels=[1] * 39)
    with pytest.raises(UserError, match=r"found \[39\] of torch.uint8, allowed: 40 labels"):
        DATASETS["mnist"](tmp_path / "b")
