"""Tars in the layout of WebDataset: samples as in memory, batches for any number of processes, and hostile tars."""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.data import DATASETS, Augment, Preprocess, Split
from bpfree.data.augment import PixelValues
from bpfree.data.shards import tar_index
from tests.data.shards import (
    add,
    assert_same_for_any_number_of_processes,
    batches_of,
    npy,
    png,
    samples,
    write_shards,
    write_tar,
)
from tests.data.test_parts import ALL
from tests.helpers import same
from tests.hostile.guard import limited
from tests.runs.test_run import power_cut, weights
from tests.test_cli import shell


@pytest.fixture
def read(tmp_path):
    """The reader, with its index below tmp_path."""
    return lambda path, **options: DATASETS["webdataset"](tmp_path, path=path, **options)


@pytest.fixture(scope="module")
def digit_tars(tmp_path_factory, digits_data):
    """The patterns of the tars of some training and test digits, and these digits."""
    folder = tmp_path_factory.mktemp("digits")
    train, test = digits_data.train.slice(0, 900), digits_data.test
    return write_shards(folder, "train", train, 200), write_shards(folder, "test", test, 200), train, test


def small(n=40, shape=(3, 6, 5), classes=4):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator), torch.arange(n) % classes)


def test_samples_are_those_that_were_written(read, digit_tars):
    """Of one package and of another; in one tar, in a folder, by braces and by stars."""
    path, test_path, train, test = digit_tars
    found = read(path, test_path=test_path)
    assert torch.equal(found.train.x[:], train.x)
    assert torch.equal(found.train.y, train.y)
    assert torch.equal(found.test.x[torch.tensor([5, 2])], test.x[[5, 2]])
    assert found.classes == 10
    assert found.class_names is None, "classes are 0 to 9"
    assert torch.equal(read(path.parent / "train-*.tar", test=0).train.y, train.y)
    assert len(read(path.parent, test=0).train.y) == len(train.y) + len(test.y)


def test_tars_of_tarfile_and_of_the_package_are_read_alike(read, tmp_path, digits_data):
    part = Split(*(t[:50] for t in digits_data.train))
    one = read(write_tar(tmp_path / "one.tar", samples(part)), test=0).train
    many = read(write_shards(tmp_path / "many", "x", part, 20), test=0).train
    for split in (one, many):
        assert torch.equal(split.x[:], part.x)
        assert torch.equal(split.y, part.y)


def test_training_is_as_good_as_from_memory(digit_tars, tmp_path, undrawn):
    path, test_path, train, test = digit_tars
    data = {"name": "webdataset", "path": str(path), "test_path": str(test_path), "cache": str(tmp_path), "window": 500}
    from_tars, in_memory = (bpfree.fit("mlp", d, "backprop", epochs=1, batch_size=8) for d in (data, train))
    found, expected = (run.evaluate(test)["accuracy"] for run in (from_tars, in_memory))
    assert expected > 0.85
    assert found == pytest.approx(expected, abs=0.04)


def test_a_run_resumes_in_the_middle_of_an_epoch(digit_tars, tmp_path, monkeypatch, undrawn, at_once):
    path, test_path, *_ = digit_tars
    data = {"name": "webdataset", "path": str(path), "test_path": str(test_path), "cache": str(tmp_path), "window": 500}
    options = {"epochs": 2, "batch_size": 64, "augment": {"shift": 1, "mixup": 0.2}}
    bpfree.fit("mlp", data, "backprop", out=tmp_path / "whole", **options)
    with power_cut(monkeypatch, 18, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", data, "backprop", out=tmp_path / "torn", **options)
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


@pytest.mark.parametrize("changes", [{}, ALL, {**ALL, "mixup": 0.3}], ids=["none", "all", "mixup"])
def test_batches_do_not_depend_on_the_number_of_processes(changes, read, tmp_path):
    dataset = read(write_shards(tmp_path / "x", "x", small(200), 30), test=0, window=60)
    augment = Augment(**changes, values=PixelValues.of(Preprocess.of(dataset, dataset.train)))
    assert_same_for_any_number_of_processes(dataset, augment=augment, batch_size=20)


def test_the_order_does_not_depend_on_where_the_tars_lie(read, tmp_path):
    found = [
        [batch.x for batch in batches_of(read(write_shards(tmp_path / name, "x", small(), 10), test=0)).epoch()]
        for name in ("a", "b")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("size", [2, 3])
def test_a_process_reads_its_share_of_the_bytes(size, read, tmp_path, monkeypatch):
    """Each process reads its rows alone: together as many bytes as one. And few tars at a time, with a small window."""
    monkeypatch.setattr("bpfree.data.shards.tar_rows.NEIGHBOURS", 15)
    path, n = write_shards(tmp_path / "x", "x", small(600, (1, 2, 2)), 15), 600
    for rank in range(size):
        batches = batches_of(read(path, test=0, window=120), 30)
        source = batches.x.file
        first, source._files.most, source._files.opened = source.bytes_read, 8, 0
        source._files._open.clear()
        list(batches.epoch(part=(rank, size)))
        assert source.bytes_read - first == pytest.approx(int(source.index.size.sum()) / size, rel=0.03)
        assert source._files.opened <= n / 15 / size + 2 * 5, "of 40 tars, in 5 windows"


def test_all_tars_need_not_be_open(read, tmp_path):
    dataset = read(write_shards(tmp_path / "x", "x", small(200, (1, 2, 2)), 1), test=0)
    list(batches_of(dataset).epoch())
    assert len(dataset.train.x.file._files._open) == 64


def label_cases():
    words = ["red", "blue", "red", "green"]
    return {
        "cls": (lambda i: {"cls": b"%d\n" % (7 * (i % 3))}, {}, ("0", "7", "14")),
        "words": (lambda i: {"cls": words[i % 4].encode()}, {}, ("blue", "green", "red")),
        "json": (lambda i: {"json": json.dumps({"label": words[i % 4]}).encode()}, {}, ("blue", "green", "red")),
        "plain json": (lambda i: {"json": b"%d" % (i % 2)}, {}, None),
        "key": (lambda i: {"json": json.dumps({"colour": i % 2}).encode()}, {"key": "colour"}, None),
        "text": (lambda i: {"txt": words[i % 4].encode()}, {"label": "txt"}, ("blue", "green", "red")),
        "two ends": (lambda i: {"a.json": b"1" if i % 2 else b"0", "cls": b"5"}, {"label": "A.json"}, None),
    }


@pytest.mark.parametrize("case", label_cases())
def test_labels_of_every_form(case, read, tmp_path):
    label, options, names = label_cases()[case]
    image = png(small(1).x[0])
    path = write_tar(tmp_path / "x.tar", [{"png": image, **label(i)} for i in range(24)])
    found = read(path, test=0, **options)
    assert found.class_names == names
    assert found.labels.counts(found.train.y)[0] > 0


def test_labels_that_are_numbers(read, tmp_path):
    image = png(small(1).x[0])
    one = write_tar(tmp_path / "a.tar", [{"png": image, "cls": b"%d.5" % i} for i in range(10)])
    assert read(one, test=0, values=True).train.y.tolist() == [i + 0.5 for i in range(10)]
    two = write_tar(tmp_path / "b.tar", [{"png": image, "json": b'{"label": [%d, 2.5]}' % i} for i in range(10)])
    found = read(two, test=0.2, values=True)
    assert (found.classes, tuple(found.train.y.shape), tuple(found.test.y.shape)) == (0, (8, 2), (2, 2))


ARRAYS = {
    "float64": (np.random.default_rng(0).normal(size=(12, 4)), (4,), torch.float32),
    "a number": (np.arange(12.0), (1,), torch.float32),
    "tokens": (np.arange(60).reshape(12, 5), (5,), torch.int64),
    "grey": (np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8), (1, 6, 5), torch.uint8),
    "colour": (np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8), (3, 6, 5), torch.uint8),
    "big-endian": (np.arange(12, dtype=">f4").reshape(12, 1), (1,), torch.float32),
    "fortran": (np.asfortranarray(np.arange(72.0).reshape(12, 2, 3)), (2, 3), torch.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_numpy_are_as_those_in_a_file(name, read, tmp_path):
    values, shape, dtype = ARRAYS[name]
    path = write_tar(tmp_path / "x.tar", [{"npy": npy(v), "cls": b"%d" % (i % 2)} for i, v in enumerate(values)])
    np.savez(tmp_path / "x.npz", x=values, y=np.arange(12) % 2)
    found, expected = (
        read(path, test=0).train.x[:],
        DATASETS["arrays"](tmp_path, path=tmp_path / "x.npz", test=0).train.x,
    )
    assert (tuple(found.shape[1:]), found.dtype) == (shape, dtype)
    assert torch.equal(found.flatten(1), expected.flatten(1).to(dtype))
    bpfree.fit("mlp", {"name": "webdataset", "path": str(path), "test": 0}, "backprop", epochs=1, validation=0)


def test_images_are_scaled_and_coloured_as_the_options_say(read, tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(small(20)))
    assert tuple(read(path, test=0, size=[8, 4], channels=1).train.x.shape) == (20, 1, 8, 4)
    mixed = write_tar(tmp_path / "y.tar", samples(small(20, (1, 6, 5))) + samples(small(20, (3, 6, 5))))
    assert tuple(read(mixed, test=0, channels=3).train.x[:].shape) == (40, 3, 6, 5)
    with pytest.raises(UserError, match=r"y\.tar: '000020.png': found an image in colour.*data\.channels=3"):
        read(mixed, test=0).train.x[20:21]


def test_splits_and_their_options(read, tmp_path):
    a, b = (write_tar(tmp_path / f"{name}.tar", samples(small(40))) for name in "ab")
    held_out = read(a)
    assert (len(held_out.train.y), len(held_out.test.y)) == (32, 8)
    assert len(read(a, validation_path=b).validation.y) == 40
    assert read(a, validation_path=b).test is None
    train, validation = held_out.carve(0.25, 0)
    assert len(train.y), len(validation.y) == (24, 8)
    assert not {*train.x.positions.tolist()} & {*validation.x.positions.tolist()}
    with pytest.raises(UserError, match=r"data\.test: found 0\.1, but there is a test split already"):
        read(a, test_path=b, test=0.1)
    strange = write_tar(tmp_path / "c.tar", samples(small(40, classes=5)))
    with pytest.raises(UserError, match=r"webdataset \(test\): found the label '4', allowed: those of training"):
        read(a, test_path=strange)
    other = write_tar(tmp_path / "d.tar", samples(small(40, (3, 7, 7))))
    with pytest.raises(UserError, match=r"d\.tar: '000000\.png': found 7x7 pixels .*allowed: 6x5"):
        read(a, test_path=other).test.x[:]


def test_the_index_is_made_once(read, tmp_path, monkeypatch):
    scans, real = [], tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda *a: scans.append(a) or real(*a))
    path = write_tar(tmp_path / "x.tar", samples(small()))
    whole = read(path, test=0).train
    assert torch.equal(read(path, test=0).train.x[:], whole.x[:])
    assert len(scans) == 1
    read(path, test=0, label="cls")
    assert len(scans) == 2, "other options, another index"
    write_tar(path, samples(small(60)))
    assert len(read(path, test=0).train.y) == 60
    assert len(scans) == 3, "the tar has changed"
    for damage in (b"", b"x" * 100, b"\0" * 5000):
        for each in (tmp_path / "indexes").glob("*.safetensors"):
            each.write_bytes(damage)
        assert len(read(path, test=0).train.y) == 60
    assert len(scans) == 6


def test_an_index_of_other_places_is_not_believed(read, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = write_tar(tmp_path / "x.tar", samples(small()))
    expected = read(path, test=0).train.x[:]
    (file,) = (tmp_path / "indexes").glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        about, values = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, wrong in (
        ("place", values["place"] + 10**9),
        ("place", -values["place"]),
        ("shard", values["shard"] + 1),
        ("size", values["size"][:-1]),
        ("y", values["y"] + 4),
        ("y", values["y"].double()),
    ):
        save_file(values | {name: wrong}, file, about)
        assert torch.equal(read(path, test=0).train.x[:], expected), name


def test_of_several_processes_one_reads_the_tars(read, tmp_path, monkeypatch):
    """Threads stand for processes: the lock belongs to a file that each of them opens."""
    scans, real = [], tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda *a: scans.append(a) or real(*a))
    path = write_tar(tmp_path / "x.tar", samples(small(200)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read(path, test=0), range(4)))
    assert len(scans) == 1
    assert all(len(each.train.y) == 200 for each in found)


PROCESS = """
import hashlib, sys
from pathlib import Path
from bpfree.data import DATASETS, Batches, Preprocess
path, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = DATASETS["webdataset"](path.parent, path=path, test=0, window=60)
batches = Batches(data.train, Preprocess.of(data, data.train), 20, seed=3)
for batch in batches.epoch(1, part=(rank, size)):
    print(*(hashlib.sha256(x.numpy().tobytes()).hexdigest() + str(int(y)) for x, y in zip(batch.x, batch.y)))
"""


def test_real_processes_get_parts_of_the_same_batches(read, tmp_path):
    """Started together, before there is an index: one of them makes it, and each finds what one process finds."""
    path = write_shards(tmp_path / "x", "x", small(200), 30)
    command = [sys.executable, "-c", PROCESS, str(path)]
    started = [subprocess.Popen([*command, str(rank), "2"], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    found = [process.communicate()[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    whole = batches_of(read(path, test=0, window=60), 20).epoch(1)
    expected = [
        " ".join(
            hashlib.sha256(x.numpy().tobytes()).hexdigest() + str(int(y)) for x, y in zip(batch.x, batch.y, strict=True)
        )
        for batch in whole
    ]
    assert [" ".join(parts) for parts in zip(*found, strict=True)] == expected


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(small()))
    (tmp_path / "file").write_text("x")
    assert len(DATASETS["webdataset"](tmp_path, path=path, test=0, cache=tmp_path / "file").train.y) == 40


def test_the_shell_and_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path / "data"))
    split = small(120, (1, 8, 8))
    write_shards(tmp_path / "flowers", "train", split, 50)
    data = "data={name: webdataset, path: 'flowers/train-{000..002}.tar', augment: {flip: true}}"
    shell("train", "digits/dfa", data, "train.epochs=1", "--out", "run")
    assert str(tmp_path / "flowers" / "train-{000..002}.tar") in (tmp_path / "run" / "config.yaml").read_text()
    Image.fromarray(split.x[0, 0].numpy()).save("one.png")
    assert "one.png" in shell("predict", "run", "one.png").stdout
    assert "accuracy" in shell("eval", "run").stdout


def test_a_missing_package_is_named(read, tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", samples(small()))
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(UserError, match=r"needs the package webdataset, .*pip install 'bpfree\[webdataset\]'"):
        read(path)
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(UserError, match=r"needs the package braceexpand, .*pip install 'bpfree\[webdataset\]'"):
        read(tmp_path / "x-{0..1}.tar")


# Hostile and damaged files


class Bomb:
    """An object whose unpickling leaves a file."""

    def __reduce__(self):
        return os.system, ("touch executed",)


IMAGE = png(small(1).x[0])
GOOD = samples(small(20))


def with_members(*members):
    """A function that writes a good tar with further members."""

    def write(path):
        write_tar(path, GOOD)
        with tarfile.open(path, "a") as tar:
            for name, content, changes in members:
                add(tar, name, content, **changes)

    return write


def cut(at):
    return lambda path: path.write_bytes(write_tar(path, GOOD).read_bytes()[:at])


def changed(at, to):
    def write(path):
        content = bytearray(write_tar(path, GOOD).read_bytes())
        content[at : at + len(to)] = to
        path.write_bytes(content)

    return write


def long_header(path):
    """A header that claims that a name of 1 GB follows; the file has a hole there."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with open(path, "ab") as file:
        file.truncate(2 << 30)


def negative_size(path):
    info = tarfile.TarInfo("a.png")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(write_tar(path, GOOD).read_bytes()[: 512 * 4] + bytes(block) + bytes(1024))


def sparse(path):
    info = tarfile.TarInfo("x.png")
    info.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


HOSTILE = {
    "empty": (lambda path: path.write_bytes(b""), {}, "corrupt or truncated tar"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), {}, "corrupt or truncated tar|found no samples"),
    "text": (lambda path: path.write_text("hello" * 500), {}, "corrupt or truncated tar"),
    "cut in a header": (cut(512 * 4 + 100), {}, "corrupt or truncated tar"),
    "cut in a content": (cut(512 * 5 + 20), {}, "corrupt or truncated tar"),
    "cut between members": (cut(512 * 8), {}, "corrupt or truncated tar"),
    "a damaged header": (changed(512 * 4 + 3, b"\xff\xff"), {}, "no header at byte 2,048"),
    "a pipe": (os.mkfifo, {}, "found a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), {}, "found a device"),
    "a link to itself": (lambda path: path.symlink_to(path), {}, "found no files|cannot be read"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), {}, "found no files"),
    "an empty folder": (lambda path: path.mkdir(), {}, "found no files"),
    "a long header": (long_header, {}, "found a header of .* bytes"),
    "a negative size": (negative_size, {}, "corrupt or truncated tar"),
    "a sparse member": (sparse, {}, "found no samples"),
    "gzip": (lambda path: tarfile.open(path, "w:gz").close(), {}, "compressed by gzip"),
    "bzip2": (lambda path: tarfile.open(path, "w:bz2").close(), {}, "compressed by bzip2"),
    "xz": (lambda path: tarfile.open(path, "w:xz").close(), {}, "compressed by xz"),
    "a way out": (with_members(("../../evil.png", IMAGE, {})), {}, r"found the name '\.\./\.\./evil\.png'"),
    "an absolute name": (with_members(("/etc/evil.png", IMAGE, {})), {}, "names within the tar"),
    "a link as image": (
        with_members(("z.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("z.cls", b"1", {})),
        {},
        "'z': found no members that can be the sample",
    ),
    "no label": (with_members(("z.png", IMAGE, {})), {}, "'z': found no label among the members .*data.label"),
    "no image": (with_members(("z.cls", b"1", {})), {}, "'z': found no members that can be the sample"),
    "two images": (
        with_members(("z.png", IMAGE, {}), ("z.jpg", IMAGE, {}), ("z.cls", b"1", {})),
        {},
        "found 2 members that can be the sample",
    ),
    "an image twice": (
        with_members(("z.png", IMAGE, {}), ("z.png", IMAGE, {}), ("z.cls", b"1", {})),
        {},
        "corrupt or truncated tar .*duplicate",
    ),
    "an image and an array": (
        with_members(("z.npy", npy([1.0]), {}), ("z.cls", b"1", {})),
        {},
        "is an array and .* is an image",
    ),
    "an empty image": (with_members(("z.png", b"", {}), ("z.cls", b"1", {})), {}, "found 0 bytes"),
    "an empty label": (with_members(("z.png", IMAGE, {}), ("z.cls", b" ", {})), {}, "found a label of 0 letters"),
    "a long label": (with_members(("z.png", IMAGE, {}), ("z.cls", b"x" * 300, {})), {}, "a label of 300 letters"),
    "a huge label": (
        with_members(("z.png", IMAGE, {}), ("z.cls", b"x" * (2 << 20), {})),
        {},
        "label of 2,097,152 bytes",
    ),
    "a label of bytes": (with_members(("z.png", IMAGE, {}), ("z.cls", b"\xff\xfe", {})), {}, "not text in UTF-8"),
    "deep JSON": (
        with_members(("z.png", IMAGE, {}), ("z.json", b"[" * 100_000, {})),
        {"label": "json"},
        "found no label|that is not JSON",
    ),
    "a label for each": (
        lambda path: write_tar(path, [{"png": IMAGE, "cls": b"%d" % i} for i in range(30)]),
        {},
        "found 30 different labels for 30 samples",
    ),
    "one class": (lambda path: write_tar(path, [{"png": IMAGE, "cls": b"1"}] * 5), {}, "labels of 1 classes"),
    "a pickle as sample": (with_members(), {"sample": "pyd"}, "found 'pyd', allowed: .*never read"),
    "a pickle as label": (with_members(), {"label": "pickle"}, "found 'pickle', allowed: .*never read"),
    "a window of nothing": (with_members(), {"window": 0}, "data.window: found 0"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_in_words(name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, options, message = HOSTILE[name]
    write(tmp_path / "x.tar")
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "x.tar", **options)
    assert len(str(error.value)) < 1500
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path.parent / "evil.png").exists()


DAMAGED = {
    "not an image": (b"hello", "png", "not an image that can be read"),
    "a cut image": (IMAGE[:50], "png", "not an image that can be read"),
    "a pickle": (pickle.dumps(Bomb()), "png", "not an image that can be read"),
    "objects": (npy(np.array([Bomb()], dtype=object), pickled=True), "npy", "not an array of numbers"),
    "a lying header": (
        npy(np.zeros(4)).replace(b"(4,)", b"(4000000000000,)").replace(b" " * 12, b"", 1),
        "npy",
        "not an array",
    ),
    "a header of code": (
        b"\x93NUMPY\x01\x00" + (20).to_bytes(2, "little") + b"__import__('os').x()",
        "npy",
        "not an array of numbers",
    ),
    "a pickle as array": (pickle.dumps(Bomb()), "npy", "not an array of numbers"),
    "nan": (npy([1.0, np.nan]), "npy", "found NaN or infinite values"),
    "words": (npy(["a", "b"]), "npy", "found <U1"),
    "another shape": (npy([1.0, 2.0, 3.0]), "npy", r"found torch\.float32 \[3\], allowed: torch\.float32 \[2\]"),
    "another type": (npy([1, 2]), "npy", r"found torch\.int64 \[2\], allowed: torch\.float32 \[2\]"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_sample_is_named_when_it_is_read(name, read, tmp_path, monkeypatch):
    """As the first sample and as another one."""
    monkeypatch.chdir(tmp_path)
    content, ending, message = DAMAGED[name]
    good = IMAGE if ending == "png" else npy([1.0, 2.0])
    each = [{ending: good, "cls": b"%d" % (i % 2)} for i in range(9)] + [{ending: content, "cls": b"0"}]
    dataset = read(write_tar(tmp_path / "x.tar", each, keys=[f"d/{i}" for i in range(10)]), test=0)
    with pytest.raises(UserError, match=rf"x\.tar: 'd/9\.{ending}': .*{message}"):
        dataset.train.x[:]
    if not name.startswith("another"):
        with pytest.raises(UserError, match=rf"y\.tar: '0\.{ending}': .*{message}"):
            read(write_tar(tmp_path / "y.tar", each[::-1], keys=range(10)))
    assert not (tmp_path / "executed").exists()


def test_further_members_are_never_read(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    each = [{**members, "pyd": bomb, "pickle": bomb, "pth": bomb} for members in GOOD]
    dataset = read(write_tar(tmp_path / "x.tar", each), test=0)
    assert torch.equal(dataset.train.x[:], small(20).x)
    assert not (tmp_path / "executed").exists()


def test_a_tar_that_is_cut_or_gone_while_it_is_used(read, tmp_path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    dataset = read(path, test=0)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"x\.tar: truncated while it was in use"):
        dataset.train.x[:]
    dataset.train.x.file._files._open.clear()
    path.unlink()
    with pytest.raises(UserError, match=r"x\.tar: cannot be read \(No such file"):
        dataset.train.x[:]


def test_tars_with_wrong_bytes_are_read_or_refused(read, tmp_path):
    rng, content = random.Random(0), write_tar(tmp_path / "good.tar", GOOD).read_bytes()
    for i in range(150):
        wrong = bytearray(content)
        for _ in range(rng.choice([1, 2, 8])):
            wrong[rng.randrange(40) * 512 + rng.choice([0, 100, 124, 125, 135, 148, 156, 257, 345])] = rng.randrange(
                256
            )
        (tmp_path / f"{i}.tar").write_bytes(wrong)
        with suppress(UserError), limited(10):
            read(tmp_path / f"{i}.tar", test=0).train.x[:]


PATTERNS = {
    "x-{0..99999999999}.tar": "more files than allowed",
    "x-{1..9}{0..999999}{0..999999}.tar": "more files than allowed",
    "x-{0..3.tar": "allowed: braces such as",
    "{" * 5000 + "}" * 5000: "more files than allowed",
    "x-{0..3}.tar": "cannot be read",
    "x-*.tar": "found no files",
    "pipe:touch executed": "found no files",
    "http://localhost:1/x.tar": "found no files",
    "a" * 5000: "found no files",
    "{a,a}.tar": "twice",
}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern[:30])
def test_hostile_patterns(pattern, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=PATTERNS[pattern]):
        read(pattern)
    assert not (tmp_path / "executed").exists()
