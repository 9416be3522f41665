"""Parquet files: samples as in memory, batches for any number of processes, and hostile files."""

import os
import pickle
import sys
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.data import DATASETS, Augment, Preprocess, Split
from bpfree.data.augment import PixelValues
from bpfree.data.shards import parquet_files
from tests.data.shards import (
    assert_same_for_any_number_of_processes,
    batches_of,
    huggingface,
    png,
    write_images,
)
from tests.data.test_parts import ALL
from tests.data.test_webdataset import Bomb, small
from tests.helpers import same
from tests.runs.test_run import power_cut, weights


@pytest.fixture
def read(tmp_path):
    return lambda path, **options: DATASETS["parquet"](tmp_path, path=path, **options)


def write(path, columns, per_group=10, **options):
    pq.write_table(pa.table(columns), path, row_group_size=per_group, **options)
    return path


LABELS = [i % 2 for i in range(24)]
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), dtype=np.uint8)


def test_images_are_those_that_were_written(read, tmp_path):
    """In the form of Hugging Face, with the names of its classes; and as plain bytes."""
    split = small(40)
    names = ["rose", "aster", "tulip", "daisy"]
    found = read(write_images(tmp_path / "a.parquet", split, 7, names), test=0)
    assert torch.equal(found.train.x[:], split.x)
    assert torch.equal(found.train.y, split.y)
    assert found.class_names == tuple(names), "in their order, and not in that of the alphabet"
    plain = {"image": [png(x) for x in split.x], "label": split.y.numpy(), "id": [str(i) for i in range(40)]}
    found = read(write(tmp_path / "b.parquet", plain), test=0, ignore=["id"])
    assert torch.equal(found.train.x[torch.tensor([39, 0])], split.x[[39, 0]])
    assert found.class_names is None
    assert tuple(read(tmp_path / "b.parquet", test=0, columns=["image"], size=8).train.x.shape) == (40, 3, 8, 8)


def nested(values):
    return pa.array(
        values.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[2]), values.shape[1])
    )


LISTS = {
    "lists": (pa.array(IMAGES[:, 0, :, 0].tolist()), IMAGES[:, 0, :, 0], torch.int64),
    "fixed": (pa.array(IMAGES[:, 0, :, 0].tolist(), pa.list_(pa.uint8(), 5)), IMAGES[:, 0, :, 0], torch.uint8),
    "large": (pa.array(IMAGES[:, 0, :, 0].tolist(), pa.large_list(pa.float64())), IMAGES[:, 0, :, 0], torch.float32),
    "half": (pa.array(list(IMAGES[:, 0, :, 0].astype(np.float16))), IMAGES[:, 0, :, 0], torch.float16),
    "bools": (pa.array((IMAGES[:, 0, :, 0] > 99).tolist()), IMAGES[:, 0, :, 0] > 99, torch.bool),
    "nested": (nested(IMAGES[..., 0]), IMAGES[..., :1].transpose(0, 3, 1, 2), torch.uint8),
    "tensors": (
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(IMAGES)),
        IMAGES.transpose(0, 3, 1, 2),
        torch.uint8,
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_arrays(name, read, tmp_path):
    column, expected, dtype = LISTS[name]
    found = read(write(tmp_path / "x.parquet", {"x": column, "label": LABELS}), test=0).train.x
    assert found.dtype == dtype
    assert torch.equal(found[:], torch.from_numpy(expected.copy()).to(dtype))
    assert torch.equal(found[[23, 4, 4]], torch.from_numpy(expected[[23, 4, 4]].copy()).to(dtype))


COLUMNS = {
    "age": list(range(24)),
    "height": [1.5 + i / 100 for i in range(24)],
    "smokes": [i % 3 == 0 for i in range(24)],
    "price": [Decimal("1.25")] * 24,
}


def test_columns_of_numbers_are_a_table(read, tmp_path):
    """Standardised as the data set `table` does, and predictions take rows of a CSV."""
    path = write(tmp_path / "x.parquet", {**COLUMNS, "label": ["no", "yes"] * 12, "name": ["x"] * 24})
    found = read(path, test=0, ignore=["name"])
    assert found.train.x.dtype == torch.float64
    assert found.train.x[2].tolist() == [2.0, 1.52, 0.0, 1.25]
    assert [column.name for column in found.columns] == list(COLUMNS)
    assert found.class_names == ("no", "yes")
    scaled = Preprocess.of(found, found.train)(found.train.x[:])
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert read(path, test=0, columns=["height", "age"]).train.x[3].tolist() == [1.53, 3.0]
    numbers = read(path, test=0.25, label="height", values=True, columns=["age"])
    assert (numbers.classes, len(numbers.test.y), numbers.train.y.dtype) == (0, 6, torch.float32)


def test_labels_of_every_form(read, tmp_path):
    words = ["red", "blue", "green", "blue"] * 6
    for i, (column, names) in enumerate(
        (
            (pa.array(LABELS, pa.int8()), None),
            (pa.array([7 * v for v in LABELS], pa.uint64()), ("0", "7")),
            (pa.array([v == 1 for v in LABELS]), ("False", "True")),
            (pa.array(words), ("blue", "green", "red")),
            (pa.array(words, pa.large_string()), ("blue", "green", "red")),
            (pa.array(words).dictionary_encode(), ("blue", "green", "red")),
        )
    ):
        found = read(write(tmp_path / f"{i}.parquet", {"x": COLUMNS["height"], "label": column}), test=0)
        assert found.class_names == names
        assert len(found.train.y) == 24
    lists = write(tmp_path / "lists.parquet", {"x": COLUMNS["height"], "label": [[1.5, 2.0]] * 24})
    assert tuple(read(lists, test=0, values=True).train.y.shape) == (24, 2)


def test_several_files_and_splits(read, tmp_path):
    for name, at in (("train-0", 0), ("train-1", 50), ("valid", 20)):
        split = small(70 if name == "train-0" else 50)
        write_images(tmp_path / f"{name}.parquet", split._replace(x=(split.x.int() + at).clamp(max=255).byte()), 16)
    found = read(tmp_path / "train-*.parquet", validation_path=tmp_path / "valid.parquet")
    assert (len(found.train.y), len(found.validation.y), found.test) == (120, 50, None)
    assert torch.equal(found.train.x[70:], (small(50).x.int() + 50).clamp(max=255).byte())
    assert torch.equal(found.validation.x[:], (small(50).x.int() + 20).clamp(max=255).byte())
    assert torch.equal(
        found.train.x.blocks.of, torch.repeat_interleave(torch.tensor([16, 16, 16, 16, 6, 16, 16, 16, 2]))
    )
    held_out = read(tmp_path / "train-{0..1}.parquet")
    assert (len(held_out.train.y), len(held_out.test.y)) == (96, 24)
    assert len(read(tmp_path, test=0).train.y) == 170, "a folder"


@pytest.mark.parametrize("changes", [{}, ALL, {**ALL, "mixup": 0.3}], ids=["none", "all", "mixup"])
def test_batches_do_not_depend_on_the_number_of_processes(changes, read, tmp_path):
    dataset = read(write_images(tmp_path / "x.parquet", small(200), 15), test=0, window=60)
    augment = Augment(**changes, values=PixelValues.of(Preprocess.of(dataset, dataset.train)))
    assert_same_for_any_number_of_processes(dataset, augment=augment, batch_size=20)


@pytest.mark.parametrize("kind", ["lists", "table"])
def test_numbers_give_the_same_batches_for_any_number_of_processes(kind, read, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 6))
    columns = {"x": list(x)} if kind == "lists" else {f"f{i}": x[:, i] for i in range(6)}
    path = write(tmp_path / "x.parquet", {**columns, "label": np.arange(200) % 3}, per_group=16)
    assert_same_for_any_number_of_processes(read(path, test=0, window=50), batch_size=20)


def test_a_process_reads_its_share_of_the_row_groups(read, tmp_path):
    """In an epoch each row group is read once, and those at the border of two processes by both."""
    path = write_images(tmp_path / "x.parquet", small(1200, (1, 2, 2)), 10)

    def bytes_of(rank, size):
        batches = batches_of(read(path, test=0, window=400), 40)
        source = batches.x.file
        source._kept.clear()
        before = source.bytes_read
        list(batches.epoch(1, part=(rank, size)))
        return source.bytes_read - before

    whole = bytes_of(0, 1)
    assert 0.3 * path.stat().st_size < whole < path.stat().st_size
    for size in (2, 4):
        each = [bytes_of(rank, size) for rank in range(size)]
        borders = 3 * (size - 1)  # in 3 windows of 40 row groups each
        assert whole * 0.99 <= sum(each) <= whole * (1 + 3 * borders / 120)
        assert max(each) <= whole * (1 / size + 6 * 3 / 120)


def test_other_columns_are_not_read(read, tmp_path):
    path = write(tmp_path / "x.parquet", {"x": COLUMNS["height"], "label": LABELS, "heavy": [os.urandom(9999)] * 24})
    dataset = read(path, test=0, columns=["x"])
    list(batches_of(dataset, 8).epoch())
    assert dataset.train.x.file.bytes_read < 24 * 9999


def test_a_small_window_keeps_few_row_groups(read, tmp_path):
    dataset = read(write_images(tmp_path / "x.parquet", small(300, (1, 2, 2)), 10), test=0, window=50)
    list(batches_of(dataset, 20).epoch())
    assert len(dataset.train.x.file._kept) <= 6


def test_training_is_as_good_as_from_memory_and_resumes(digits_data, tmp_path, monkeypatch, undrawn, at_once):
    train, test = digits_data.train.slice(0, 900), digits_data.test
    path, test_path = (
        write_images(tmp_path / f"{name}.parquet", split, 50) for name, split in (("a", train), ("b", test))
    )
    data = {"name": "parquet", "path": str(path), "test_path": str(test_path), "window": 500}
    options = {"epochs": 1, "batch_size": 8}
    whole = bpfree.fit("mlp", data, "backprop", out=tmp_path / "whole", **options)
    expected = bpfree.fit("mlp", train, "backprop", **options).evaluate(test)["accuracy"]
    assert expected > 0.85
    assert whole.result["test"]["accuracy"] == pytest.approx(expected, abs=0.04)
    with power_cut(monkeypatch, 30, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", data, "backprop", out=tmp_path / "torn", **options)
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def test_a_missing_package_is_named(read, tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"x": COLUMNS["height"], "label": LABELS})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow, .*pip install 'bpfree\[parquet\]'"):
        read(path)


# Hostile and damaged files


def damaged(at):
    def make(path):
        content = bytearray(write(path, {"x": COLUMNS["height"], "label": LABELS}).read_bytes())
        content[at : at + 8] = b"\xff" * 8
        path.write_bytes(content)

    return make


def cut(path):
    path.write_bytes(write(path, {"x": COLUMNS["height"], "label": LABELS}).read_bytes()[:-20])


def of(**columns):
    return lambda path: write(path, {"x": COLUMNS["height"], "label": LABELS} | columns)


HUGGINGFACE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
HOLE = [1.0, None, *COLUMNS["height"][2:]]
HOSTILE = {
    "empty": (lambda path: path.write_bytes(b""), {}, "not a Parquet file"),
    "text": (lambda path: path.write_text("hello" * 500), {}, "not a Parquet file"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), {}, "not a Parquet file"),
    "cut": (cut, {}, "not a Parquet file"),
    "a damaged page": (damaged(4), {}, "not a Parquet file"),
    "a pipe": (os.mkfifo, {}, "found a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), {}, "found a device"),
    "a link to itself": (lambda path: path.symlink_to(path), {}, "found no files|not a Parquet file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), {}, "found no files"),
    "an empty folder": (lambda path: path.mkdir(), {}, "found no files"),
    "no rows": (
        lambda path: write(path, {"x": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}),
        {},
        "no rows",
    ),
    "no label": (of(), {"label": "lable"}, "unknown column in data.label 'lable'. Did you mean 'label'"),
    "no such column": (of(), {"columns": ["y"]}, "unknown column in data.columns 'y'"),
    "no such column to ignore": (of(), {"ignore": ["y"]}, "unknown column in data.ignore 'y'"),
    "nothing to learn from": (of(), {"ignore": ["x"]}, "found no column beside the label"),
    "words": (of(word=["a"] * 24), {}, "found column 'word' of the type string.*data.ignore"),
    "times": (of(x=pa.array([0] * 24, pa.timestamp("s"))), {}, "found column 'x' of the type timestamp"),
    "an image beside numbers": (of(image=[b"x"] * 24), {}, "found column 'image' of the type binary"),
    "a label of fractions": (of(label=COLUMNS["height"]), {}, "of the type double.*data.values=true"),
    "a label of bytes": (of(label=[b"x"] * 24), {}, "of the type binary"),
    "a label of words as numbers": (
        of(label=["x"] * 24),
        {"values": True},
        "values of the type string, allowed: numbers",
    ),
    "a missing label": (of(label=[None, *LABELS[1:]]), {}, "row group 0, column 'label': found 1 rows without a label"),
    "a missing number as label": (of(label=HOLE), {"values": True}, "row 1 of it"),
    "an empty label": (of(label=["", "a"] * 12), {}, "a label of 0 letters"),
    "a long label": (of(label=["x" * 300, "a"] * 12), {}, "a label of 300 letters"),
    "a label for each": (of(label=list(range(24))), {}, "24 different labels for 24 samples"),
    "one class": (of(label=[1] * 24), {}, "labels of 1 classes"),
    "lists of words": (of(x=[["a"]] * 24), {}, "found values of the type string, allowed: numbers"),
    "lists of other lengths": (of(x=[[1.0], [1.0, 2.0]] * 12), {}, "lists of 1 to 2 values, allowed: of one length"),
    "lists of nothing": (of(x=pa.array([[]] * 24, pa.list_(pa.float32()))), {}, "which hold no values"),
    "lists that lack one": (of(x=[[1.0], None] * 12), {}, "5 rows without a value, the first is row 1 of it"),
    "lists with a hole": (of(x=[[1.0], [None]] * 12), {}, "rows without a value"),
    "an image only by its path": (
        of(x=pa.array([{"path": "/etc/passwd"}] * 24, HUGGINGFACE)),
        {},
        "only a path is there",
    ),
    "no image": (of(x=pa.array([None] * 24, pa.binary())), {}, "row group 0: found 10 rows without a value"),
    "not an image": (of(x=[b"hello"] * 24), {}, "row 0 of it: not an image that can be read"),
    "a pickle as image": (of(x=[pickle.dumps(Bomb())] * 24), {}, "row 0 of it: not an image that can be read"),
    "a window of nothing": (of(), {"window": 0}, "data.window: found 0"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_words(name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, options, message = HOSTILE[name]
    make(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "x.parquet", test=0, **options).train.x[:]
    assert len(str(error.value)) < 1500
    assert not (tmp_path / "executed").exists()


LATER = {
    "a missing number": ({"x": HOLE}, "row group 0, column 'x': found 1 rows without a value, the first is row 1"),
    "nan": ({"x": [*COLUMNS["height"][:23], float("nan")]}, "row group 2, column 'x', row 3 of it: found nan"),
    "other lists": ({"x": [[1.0]] * 12 + [[1.0, 2.0]] * 12}, "row group 1, column 'x': found lists of 1 to 2 values"),
    "longer lists": (
        {"x": [[1.0]] * 10 + [[1.0, 2.0]] * 14},
        r"row group 1, column 'x': found lists \[2\], allowed: \[1\]",
    ),
    "infinite lists": ({"x": [[1.0]] * 23 + [[float("inf")]]}, "row group 2, column 'x': found NaN or infinite"),
    "a broken image": ({"x": [png(small(1).x[0])] * 23 + [b"x"]}, "row group 2, row 3 of it: not an image"),
    "another image": (
        {"x": [png(small(1).x[0])] * 23 + [png(small(1, (3, 9, 9)).x[0])]},
        "row group 2, row 3 of it: found 9x9 pixels .*data.size",
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_wrong_within_is_named_when_it_is_read(name, read, tmp_path):
    columns, message = LATER[name]
    dataset = read(of(**columns)(tmp_path / "x.parquet"), test=0)
    with pytest.raises(UserError, match=message):
        dataset.train.x[:]


def test_files_with_other_columns(read, tmp_path):
    of()(tmp_path / "a.parquet")
    for columns, message in (
        ({"x": LABELS, "label": LABELS}, r"b\.parquet: found for column 'x': int64, allowed: double"),
        ({"y": LABELS, "label": LABELS}, r"b\.parquet: found for column 'x': no such column, allowed: double"),
    ):
        write(tmp_path / "b.parquet", columns)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "{a,b}.parquet")
        with pytest.raises(UserError, match=message):
            read(tmp_path / "a.parquet", test_path=tmp_path / "b.parquet")
    write(tmp_path / "b.parquet", {"x": COLUMNS["height"], "label": [2, 1] * 12})
    with pytest.raises(UserError, match=r"parquet \(test\): found the label '2', allowed: those of training"):
        read(tmp_path / "a.parquet", test_path=tmp_path / "b.parquet")


def test_large_row_groups_are_refused(read, tmp_path, monkeypatch):
    """Also those that are small in the file, because all values are equal."""
    path = write(tmp_path / "x.parquet", {"x": [[1.0] * 50] * 2000, "label": [0, 1] * 1000}, per_group=2000)
    monkeypatch.setattr(parquet_files, "LARGEST", 100_000)
    assert path.stat().st_size < 20_000
    with pytest.raises(
        UserError,
        match=r"row group 0: found 2,000 rows, which take more memory than allowed.* Write smaller row groups",
    ):
        read(path, test=0)


@pytest.mark.filterwarnings("ignore")  # of pyarrow before 21, about such a file
def test_types_of_strangers_are_not_unpickled(read, tmp_path, monkeypatch):
    """Old versions of pyarrow unpickled a description in the file (CVE-2023-47248)."""
    monkeypatch.chdir(tmp_path)
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb())}
    schema = pa.schema([pa.field("x", pa.float64(), metadata=about), pa.field("label", pa.int64())])
    pq.write_table(pa.table({"x": COLUMNS["height"], "label": LABELS}, schema=schema), tmp_path / "x.parquet")
    with suppress(UserError):
        read(tmp_path / "x.parquet", test=0).train.x[:]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("names", [["a"], ["a", "a"], [1, 2], "ab", None, {"a": 1}, [["a"], ["b"]]], ids=str)
def test_hostile_names_of_classes_are_passed_over(names, read, tmp_path):
    table = pa.table({"x": COLUMNS["height"], "label": LABELS}).replace_schema_metadata(huggingface(names))
    pq.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", test=0).class_names is None
    for about in (b"", b"[" * 100_000, b"[]", b'{"info": 3}'):
        pq.write_table(table.replace_schema_metadata({b"huggingface": about}), tmp_path / "x.parquet")
        assert read(tmp_path / "x.parquet", test=0).class_names is None


def test_a_file_that_is_gone_or_changed_while_it_is_used(read, tmp_path):
    path = of()(tmp_path / "x.parquet")
    dataset = read(path, test=0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"x\.parquet: not a Parquet file that can be read"):
        dataset.train.x[:]
    path.unlink()
    with pytest.raises(UserError, match=r"x\.parquet: not a Parquet file that can be read \(No such file"):
        dataset.train.x[:]


def test_a_label_outside_of_the_names_of_classes(read, tmp_path):
    split = small(20)
    path = write_images(tmp_path / "x.parquet", Split(split.x, split.y - 1), 10, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"parquet \(train\): found the label '-1', allowed: those of training"):
        read(path)
